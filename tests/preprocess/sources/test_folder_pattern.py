import pytest

from maskshards.preprocess.errors import SourceError
from maskshards.preprocess.sources.folder_pattern import FolderPattern


@pytest.mark.parametrize(
    ("text", "flat", "base"),
    [
        ("images", False, "images/train"),
        ("images", True, "images"),
        (".", True, ""),
        ("{split}/images", False, "train/images"),
        ("images/{split}2017", False, "images/train2017"),
        ("{split}/*/images_png", False, "train"),
    ],
)
def test_where_the_files_of_a_split_are(text, flat, base):
    assert FolderPattern(text, flat).base("train") == base


def test_stars_are_part_of_the_key_and_come_back():
    pattern = FolderPattern("{split}/*/images/*/left")
    assert pattern.stem("train", "ulm/images/day/left/deep/a") == "ulm/day/deep/a"
    assert pattern.path("train", "ulm/day/deep/a") == "ulm/images/day/left/deep/a"
    for other in ("ulm/labels/day/left/a", "ulm/images/day/left", "a"):
        assert pattern.stem("train", other) is None
    plain = FolderPattern("images")
    assert plain.path("train", plain.stem("train", "x/y")) == "x/y"


def test_splits_are_folders_that_fit(tmp_path):
    for folder in ("train/images", "val/images", "docs/text", ".git/images", "__MACOSX/images"):
        (tmp_path / folder).mkdir(parents=True)
    assert FolderPattern("{split}/images").splits(tmp_path) == ("train", "val")
    for folder in ("images/train2017", "images/val2017", "images/other"):
        (tmp_path / folder).mkdir(parents=True)
    assert FolderPattern("images/{split}2017").splits(tmp_path) == ("train", "val")
    assert FolderPattern("nowhere").splits(tmp_path) == ()
    with pytest.raises(SourceError, match="may stand after"):
        FolderPattern("*/{split}").splits(tmp_path)
