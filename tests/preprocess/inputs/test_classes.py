import pytest

from maskshards.preprocess.errors import SourceError
from maskshards.preprocess.inputs.classes import (
    ade20k_classes,
    ade20k_palette,
    packaged_table,
    read_classes,
    read_object_info,
)


def test_names_keep_their_places(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("sky\n road \ntree\n")
    assert read_classes(path) == ("sky", "road", "tree")


@pytest.mark.parametrize(
    ("text", "message"),
    [("sky\n\ntree\n", "line 2: empty"), ("sky\ntree\nsky\n", "line 3: 'sky' stands twice"), ("", "line 1")],
)
def test_lists_that_would_shift_ids_are_refused(tmp_path, text, message):
    path = tmp_path / "classes.txt"
    path.write_text(text)
    with pytest.raises(SourceError, match=message):
        read_classes(path)


def test_a_missing_list_is_named(tmp_path):
    with pytest.raises(
        SourceError, match=r"nothing\.txt cannot be read: No such file .*one class name a line"
    ):
        read_classes(tmp_path / "nothing.txt")


def test_a_list_that_is_no_text_is_named(tmp_path):
    (tmp_path / "classes.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(SourceError, match=r"classes\.txt cannot be read: it is not UTF-8 .*one class name"):
        read_classes(tmp_path / "classes.txt")


def test_ade20k_has_150_names_in_order():
    names = ade20k_classes()
    assert len(names) == 150
    assert names[:3] == ("wall", "building, edifice", "sky")
    assert names[-1] == "flag"


def test_ade20k_has_a_colour_for_each_class():
    palette = ade20k_palette()
    assert len(palette) == 150
    assert (palette[0], palette[2], palette[-1]) == ((120, 120, 120), (6, 230, 230), (92, 0, 255))
    assert {len(color) for color in palette} == {3}
    assert {0 <= value <= 255 for color in palette for value in color} == {True}


def test_object_info_table(tmp_path):
    path = tmp_path / "objectInfo150.txt"
    path.write_text("Idx\tRatio\tTrain\tVal\tName\n1\t0.1\t5\t2\twall\n2\t0.1\t5\t2\tbuilding, edifice\n")
    assert read_object_info(path) == ("wall", "building, edifice")
    path.write_text("Idx\tRatio\tTrain\tVal\tName\n2\t0.1\t5\t2\twall\n")
    with pytest.raises(SourceError, match="line 2: expected index 1"):
        read_object_info(path)


def test_the_list_in_configs_is_that_of_the_release(real_data):
    assert read_object_info(real_data / "ade20k" / "objectInfo150.txt") == ade20k_classes()


def test_a_list_from_notepad(tmp_path):
    (tmp_path / "classes.txt").write_bytes(b"\xef\xbb\xbfroad\r\ncar\r\n")
    assert read_classes(tmp_path / "classes.txt") == ("road", "car")


def test_another_file_than_a_class_list(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("".join(f"{number}\n" for number in range(300_000)))
    with pytest.raises(SourceError, match="has 300000 lines; at most 65534 classes"):
        read_classes(path)
    path.write_text("a\nb\x1b[2J\n")
    with pytest.raises(SourceError, match=r"line 2: b\\x1b\[2J holds control characters"):
        read_classes(path)
    path.write_text("a\nb\nc\nb\n")
    with pytest.raises(SourceError, match="line 4: 'b' stands twice, first in line 2"):
        read_classes(path)


def test_packaged_tables():
    table = packaged_table("cityscapes")
    assert len(table.names) == len(table.values) == len(table.palette) == 19
    rule = table.rule(range(34))
    assert rule.mapping[7] == (7, 0)
    assert rule.mapping[6] == (6, None)
