import numpy as np
import pytest

from maskshards.preprocess.errors import SourceError
from maskshards.preprocess.sources.cityscapes import open_cityscapes
from maskshards.shards.format.manifest import open_split


@pytest.fixture
def cityscapes(tmp_path, write_image, write_label):
    """Both packages as unzipped: four files an image in gtFine, dummies for the test split."""
    root = tmp_path / "cityscapes"
    for split, city in (("train", "aachen"), ("val", "frankfurt"), ("test", "berlin")):
        for number in range(2):
            stem = f"{city}/{city}_00000{number}_000019"
            write_image(root / f"leftImg8bit/{split}/{stem}_leftImg8bit.png")
            values = [0, 1, 3] if split == "test" else [7, 33, 4, 29]
            write_label(root / f"gtFine/{split}/{stem}_gtFine_labelIds.png", values)
            write_label(root / f"gtFine/{split}/{stem}_gtFine_instanceIds.png", [7, 33000], np.uint16)
            write_image(root / f"gtFine/{split}/{stem}_gtFine_color.png")
            (root / f"gtFine/{split}/{stem}_gtFine_polygons.json").write_text("{}")
    for name in ("README", "license.txt"):
        (root / name).write_text("x")
    return root


def test_as_unzipped(cityscapes, build_and_check):
    told = build_and_check("cityscapes", cityscapes)
    assert "note: gtFine/train: 6 files with other endings passed over (4 .png, 2 .json)" in told.err
    assert "train: 2 pairs; Cityscapes' release has 2975" in told.err
    split = open_split(told.out_folder / "train")
    assert split.manifest.classes[0] == "road"
    assert split.manifest.classes[18] == "bicycle"
    assert split.manifest.palette[0] == (128, 64, 128)
    assert split.index(0).entry(0).class_ids == (0, 18)
    assert not (told.out_folder / "test").exists()
    assert "17 of 19 classes have no pixel" in told.out
    assert "void pixels: train 50.0%, val 50.0%" in told.out


def test_train_ids_alone_are_read(cityscapes, write_label, build_and_check):
    for path in cityscapes.glob("gtFine/*/*/*_labelIds.png"):
        path.unlink()
        write_label(path.with_name(path.name.replace("labelIds", "labelTrainIds")), [0, 18, 255, 255])
    told = build_and_check("cityscapes", cityscapes)
    split = open_split(told.out_folder / "train")
    assert split.index(0).entry(0).class_ids == (0, 18)
    assert split.manifest.settings["source"]["label_ending"] == "_gtFine_labelTrainIds.png"
    assert "void pixels: train 50.0%, val 50.0%" in told.out


def test_packages_unzipped_into_folders_of_their_own(cityscapes, build_and_check):
    for name in ("leftImg8bit", "gtFine"):
        (cityscapes / f"{name}_trainvaltest").mkdir()
        (cityscapes / name).rename(cityscapes / f"{name}_trainvaltest" / name)
    told = build_and_check("cityscapes", cityscapes)
    assert open_split(told.out_folder / "train").index(0).entry(0).class_ids == (0, 18)


def test_label_maps_of_no_known_ending_are_named(cityscapes):
    for path in cityscapes.glob("gtFine/*/*/*_labelIds.png"):
        path.unlink()
    with pytest.raises(SourceError, match=r"no label map ends in _gtFine_labelIds.*Found _gtFine_color"):
        open_cityscapes(cityscapes)


def test_a_missing_package_is_named(tmp_path):
    (tmp_path / "leftImg8bit").mkdir()
    with pytest.raises(SourceError, match=r"no gtFine/ in it; unzip gtFine_trainvaltest\.zip"):
        open_cityscapes(tmp_path)
    (tmp_path / "gtFine").mkdir()
    for folder in ("leftImg8bit/extra", "gtFine/extra"):
        (tmp_path / folder).mkdir()
    with pytest.raises(SourceError, match="no train/ or val/"):
        open_cityscapes(tmp_path).splits()
