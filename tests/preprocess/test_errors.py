from maskshards.preprocess.errors import Reject


def test_a_refused_input_is_one_line_whatever_its_name_holds():
    assert str(Reject("\x1b]0;x\x07.jpg", "two\nlines")) == "\\x1b]0;x\\x07.jpg: two\\nlines"
