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
    with pytest.raises(SourceError, match=r"names\.txt has more than 131068 lines; is it the right file"):
        read_classes(path)
    path.write_text("a\nb\nc\nb\n")
    with pytest.raises(SourceError, match="line 4: 'b' stands twice, first in line 2"):
        read_classes(path)


def test_control_characters_are_kept_as_escapes_and_told(tmp_path, caplog):
    path = tmp_path / "names.txt"
    path.write_text("a\nb\x1b[2J\nc\0d\ne\x0cf\x0c\n")
    assert read_classes(path) == ("a", r"b\x1b[2J", r"c\x00d", r"e\x0cf")
    assert [record.getMessage().partition("line ")[2] for record in caplog.records] == [
        r"2: control characters become escapes: b\x1b[2J",
        r"3: control characters become escapes: c\x00d",
        r"4: control characters become escapes: e\x0cf",
    ]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("0 sky\n1 road\n2 traffic light\n", ("sky", "road", "traffic light")),
        ("id,name\n0,sky\n1,road\n", ("sky", "road")),
        ("Index;Class\n0;sky\n1;road\n", ("sky", "road")),
        ("# my classes\nsky\n# the rest\nroad\n", ("sky", "road")),
        ("0\n1\n2\n", ("0", "1", "2")),
        ("3 wheeler\ncar\n", ("3 wheeler", "car")),
        ("building, edifice\n", ("building, edifice",)),
        ("class\nroad\n", ("class", "road")),  # one word is a name
        ("Pixel Value, Class\n0, background\n1, car\n", ("background", "car")),  # Roboflow's _classes.csv
        ("Wert und Klasse\n0 Himmel\n1 Haus\n", ("Himmel", "Haus")),
        ("name,label_id\nsky,0\nroad,1\n", ("sky", "road")),
        ("sky\t0\nroad\t1\n", ("sky", "road")),
        ('"sky",\n"road"\n', ("sky", "road")),
        ("background\n1 road\n2 car\n", ("background", "1 road", "2 car")),  # each at its own place
        ("car\n3 wheeler\n2 wheeler\n", ("car", "3 wheeler", "2 wheeler")),
    ],
)
def test_numbers_comments_and_headers_are_no_names(tmp_path, text, names):
    (tmp_path / "names.txt").write_text(text)
    assert read_classes(tmp_path / "names.txt") == names


def test_what_is_taken_off_is_told(tmp_path, caplog):
    (tmp_path / "names.txt").write_text("# mine\n1: sky\n2: road\n")
    assert read_classes(tmp_path / "names.txt", 1) == ("sky", "road")
    told = [record.getMessage().partition("names.txt: ")[2] for record in caplog.records]
    assert told == ["1 lines of comments are no classes", "the numbers before its names are taken off"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('["sky", "road"]\n', "no plain text"),
        ("{\n", "no plain text"),
        ("<!DOCTYPE html>\n<body>\n", "no plain text"),
        ("names:\n  0: sky\n  1: road\n", "YAML"),
        ("sky,road,tree\n", "one line with commas"),
        ("7 road\n8 sidewalk\n11 building\n", "numbers its classes 7, 8, 11 .*--mapping"),
        ("-1 void\n0 road\n", "numbers its classes -1, 0 .*hold 0, 1"),
        ("1 road\n2 sidewalk\n", "numbers its classes 1, 2 .*hold 0, 1, .*--reduce-zero-label"),
        ("name,r,g,b\nroad,128,64,128\ncar,0,0,142\n", "--colours"),
        ("64 128 64\tAnimal\n192 0 128\tArchway\n", "--colours"),
        ("# nothing but this\n", "line 1: empty"),
        ("sky,3\nroad,5\n", "numbers its classes 3, 5"),
        ("class_id,class_name,color\n0,road,red\n1,car,blue\n", "a table of 3 columns"),
        ('item {\n  id: 1\n  name: "road"\n}\n', "no plain text"),
        ("<?xml version='1.0'?>\n<a/>\n", "no plain text"),
        ("names: [sky, road]\n", "YAML"),
        ("- sky\n- road\n", "YAML"),
    ],
)
def test_other_files_than_lists_of_names(tmp_path, text, message):
    (tmp_path / "names.txt").write_text(text)
    with pytest.raises(SourceError, match=message):
        read_classes(tmp_path / "names.txt")


def test_utf_16_without_its_mark_is_named(tmp_path):
    (tmp_path / "names.txt").write_text("road\ncar\n", encoding="utf-16-le")
    with pytest.raises(SourceError, match="seems to be UTF-16; save it as UTF-8"):
        read_classes(tmp_path / "names.txt")


def test_packaged_tables():
    table = packaged_table("cityscapes")
    assert len(table.names) == len(table.values) == len(table.palette) == 19
    rule = table.rule(range(34))
    assert rule.mapping[7] == (7, 0)
    assert rule.mapping[6] == (6, None)
