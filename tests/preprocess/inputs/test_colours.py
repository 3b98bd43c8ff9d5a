import io

import numpy as np
import pytest
from PIL import Image

from maskshards.preprocess.errors import RejectedInput, SourceError
from maskshards.preprocess.inputs.colours import ColourTable, palette_conflict, read_colours
from maskshards.preprocess.inputs.label_file import decode_label_file

TABLE = ColourTable((((255, 255, 255), 0), ((0, 0, 255), 1), ((0, 255, 255), 0), ((0, 0, 0), None)), 2)
PICTURE = np.array([[[255, 255, 255], [0, 0, 255], [0, 255, 255], [0, 0, 0]]], np.uint8)


def encode(pixels, kind="PNG", mode=None):
    out = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(out, kind)
    return out.getvalue()


@pytest.mark.parametrize(
    ("kind", "mode"), [("PNG", None), ("TIFF", None), ("BMP", None), ("PNG", "RGBA"), ("PNG", "P")]
)
def test_colours_become_class_ids(kind, mode):
    values = decode_label_file(TABLE.values(encode(PICTURE, kind, mode)))
    assert values.dtype == np.uint8
    assert values.tolist() == [[0, 1, 0, 255]]
    assert TABLE.rule().apply(values).tolist() == [[0, 1, 0, 65535]]


def test_random_colours_agree_with_a_dictionary():
    rng = np.random.default_rng(3)
    colours = np.unique(rng.integers(0, 256, (400, 3)), axis=0)
    table = ColourTable(tuple((tuple(map(int, c)), i) for i, c in enumerate(colours)), len(colours))
    picture = colours[rng.integers(0, len(colours), (30, 40))].astype(np.uint8)
    known = dict(table.entries)
    expected = [[known[tuple(map(int, pixel))] for pixel in row] for row in picture]
    assert decode_label_file(table.values(encode(picture))).tolist() == expected
    assert ColourTable.from_json(table.to_json(), table.num_classes) == table


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (encode(np.full((2, 2, 3), 9, np.uint8)), r"does not have: \(9, 9, 9\) \(4 pixels\)"),
        (encode(PICTURE, "JPEG"), "JPEG, whose colours are smeared"),
        (encode(np.zeros((2, 2, 4), np.uint8)), "transparent pixels"),
        (b"nothing", "label map: it does not decode"),
    ],
)
def test_label_maps_without_a_class(data, message):
    with pytest.raises(RejectedInput, match=message):
        TABLE.values(data)


def test_tables_name_classes_or_use_a_list(tmp_path):
    path = tmp_path / "colours.csv"
    path.write_text(
        "name,r,g,b\nroad,255,255,255\n# comment\nbuilding, 0,0,255\nroad,0,255,255\nvoid,0,0,0\n"
    )
    classes, table = read_colours(path, None)
    assert (classes, table) == (("road", "building"), TABLE)
    assert table.palette() == ((255, 255, 255), (0, 0, 255))
    _, table = read_colours(path, ("building", "road", "tree"))
    assert [label for _, label in table.entries] == [1, 0, 1, None]
    assert table.palette() is None
    path.write_text("0,1,2,3\n1,4,5,6\n")
    assert [label for _, label in read_colours(path, ("a", "b"))[1].entries] == [0, 1]
    path.write_text("64 128 64\tAnimal\n192 0 128\tArchway\n")
    assert read_colours(path, None)[0] == ("Animal", "Archway")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("road,1,2\n", "line 1: expected class,r,g,b"),
        ("road,1,2,300\n", "line 1: expected class,r,g,b"),
        ("road,1,2,3\ncar,1,2,3\n", r"line 2: colour \(1, 2, 3\) stands twice"),
        ("0,road,1,2,3\n", "line 1: expected class,r,g,b"),
        ("road;1;2;3\ncar;x\n", "line 2: expected class,r,g,b"),
        ('{"road": "#010203"}', r"expected JSON such as \{'road': \[128, 64, 128\]\}"),
        ("void,1,2,3\n", "no colours in it"),
        ("", "no colours in it"),
    ],
)
def test_tables_that_cannot_be_meant(tmp_path, text, message):
    (tmp_path / "colours.csv").write_text(text)
    with pytest.raises(SourceError, match=message):
        read_colours(tmp_path / "colours.csv", None)


def test_a_table_that_does_not_fit_the_list(tmp_path):
    (tmp_path / "colours.csv").write_text("road,1,2,3\n")
    with pytest.raises(SourceError, match="'road' is no class of the list"):
        read_colours(tmp_path / "colours.csv", ("a",))
    with pytest.raises(SourceError, match="cannot be read"):
        read_colours(tmp_path / "none.csv", None)


def test_deep_colours_are_not_cut_to_their_high_bytes():
    """Pillow would show a map of 16-bit values below 256 as black, which is a class of many tables."""
    tifffile = pytest.importorskip("tifffile", reason="the extra 'deep' is not installed")
    out = io.BytesIO()
    tifffile.imwrite(out, np.full((4, 4, 3), 255, np.uint16), photometric="rgb")
    with pytest.raises(RejectedInput, match="a TIFF of 16 bits a channel; colours have 8"):
        TABLE.values(out.getvalue())


@pytest.mark.parametrize(
    "text",
    [
        "name;r;g;b\nroad;255;255;255\ncar;0;0;255\n",
        "road\t255\t255\t255\ncar\t0\t0\t255\n",
        "# label:color_rgb:parts:actions\nroad:255,255,255::\ncar:0,0,255::wheel,door:\n",
        '{"road": [255, 255, 255],\n "car": [0, 0, 255]}\n',
    ],
)
def test_tables_as_tools_write_them(tmp_path, text):
    (tmp_path / "colours.txt").write_text(text)
    classes, table = read_colours(tmp_path / "colours.txt", None)
    assert classes == ("road", "car")
    assert table.entries == (((255, 255, 255), 0), ((0, 0, 255), 1))


def palette_png(values, *colours):
    image = Image.frombytes("P", (len(values), 1), bytes(values))
    image.putpalette(bytes(sum(colours, ())))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


BLACK, RED, BLUE = (0, 0, 0), (255, 0, 0), (0, 0, 255)


def test_palettes_in_which_a_colour_has_two_indices_are_told():
    same = [("a", palette_png([0, 1], BLACK, RED)), ("b", palette_png([0, 1, 2], BLACK, RED, BLUE))]
    assert palette_conflict(same) == ""
    told = palette_conflict([*same, ("c", palette_png([0, 1], BLACK, BLUE))])
    assert "colour (0, 0, 255) is index 2 in b and 1 in c" in told
    unused = ("c", palette_png([0], BLACK, BLUE))
    grey = ("d", encode(np.array([[0, 1]], np.uint8)))
    empty = [(name, palette_png([value], *[BLACK] * 3)) for name, value in (("e", 0), ("f", 1))]
    assert palette_conflict([*same, unused, grey, *empty, ("g", b"no image")]) == ""
