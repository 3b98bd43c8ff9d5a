from maskshards.preprocess.errors import Reject, printable


def test_what_a_terminal_would_obey_is_escaped():
    assert printable("\x1b[2Ja\nb\u202e\udcff\x9b日本 😀") == "\\x1b[2Ja\\nb\\u202e\\udcff\\x9b日本 😀"
    assert printable("a\n\tb", kept="\n") == "a\n\\tb"
    assert str(Reject("\x1b]0;x\x07.jpg", "two\nlines")) == "\\x1b]0;x\\x07.jpg: two\\nlines"
