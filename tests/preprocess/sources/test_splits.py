import pytest

from maskshards.preprocess.errors import SourceError
from maskshards.preprocess.sources.splits import (
    Listed,
    is_validation,
    listed_splits,
    listed_stems,
    read_names,
    resolve_split,
)


class Splits:
    def __init__(self, *names):
        self.names = names

    def splits(self):
        if not self.names:
            raise SourceError("none")
        return self.names


@pytest.mark.parametrize(
    ("wanted", "names", "found"),
    [
        ("train", ("training", "validation"), "training"),
        ("validation", ("train", "val"), "val"),
        ("val", ("Train", "Val"), "Val"),
        ("train", ("train", "training"), "train"),
        ("other", ("train",), "other"),
        ("train", (), "train"),
    ],
)
def test_usual_other_words(wanted, names, found):
    assert resolve_split(wanted, Splits(*names)) == found


def test_a_share_is_a_share():
    names = [f"image {number}" for number in range(4000)]
    drawn = [name for name in names if is_validation(name, 0.1)]
    assert 300 < len(drawn) < 500
    assert set(drawn) < {name for name in names if is_validation(name, 0.2)}
    assert not any(is_validation(name, 0.0) for name in names)


def test_lists(tmp_path):
    with pytest.raises(SourceError, match="there is no such folder"):
        listed_splits(tmp_path / "nothing")
    with pytest.raises(SourceError, match="no list of names in it"):
        listed_splits(tmp_path)
    (tmp_path / "trainval.txt").write_text("a\n")
    assert listed_splits(tmp_path) == ("trainval",)
    (tmp_path / "train.txt").write_bytes(b"\xef\xbb\xbfa b\r\n\r\n./c\r\n")
    assert listed_splits(tmp_path) == ("train",)
    assert read_names(tmp_path / "train.txt") == {"a b": 1, "c": 3}
    (tmp_path / "train.txt").write_text("a\nb\na\n")
    with pytest.raises(SourceError, match="line 3: 'a' stands in line 1 too"):
        read_names(tmp_path / "train.txt")
    (tmp_path / "train.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(SourceError, match="is not UTF-8"):
        read_names(tmp_path / "train.txt")


ENDINGS = (".jpg", ".png")


@pytest.mark.parametrize(
    "line",
    [
        "a b",
        "a b.JPG",
        "a b_mask.png",
        "photos/a b.jpg",
        "/photos/a b.jpg /masks/a b_mask.png",
        "./sets/photos/a b.jpg, sets/masks/a b_mask.png",
        "photos\\a b.jpg",
        "a b.jpg\ta b_mask.png",
    ],
)
def test_a_line_names_an_image_in_many_ways(tmp_path, line):
    path = tmp_path / "train.txt"
    path.write_text(f"\n{line}\r\n")
    assert listed_stems(path, "sets/photos", "sets/masks", ENDINGS, "_mask.png") == {"a b": Listed(2, "a b")}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2007_000032  1", "line 1: .* says whether a class is in the image"),
        ("2007_000032 -1", "whether a class is in the image .-1.; expected a list of names alone"),
    ],
)
def test_lists_of_something_else(tmp_path, line, message):
    (tmp_path / "train.txt").write_text(line)
    with pytest.raises(SourceError, match=message):
        listed_stems(tmp_path / "train.txt", "images", "labels", ENDINGS, ".png")
