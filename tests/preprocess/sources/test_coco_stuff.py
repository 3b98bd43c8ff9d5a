import pytest

from maskshards.preprocess.__main__ import main
from maskshards.preprocess.errors import SourceError
from maskshards.preprocess.inputs.classes import packaged_table
from maskshards.preprocess.sources.coco_stuff import open_coco_stuff
from maskshards.shards.format.manifest import open_split


@pytest.mark.parametrize(
    ("images", "maps"), [("images/", "annotations/"), ("", "stuffthingmaps/"), ("images/", "")]
)
def test_as_unzipped(tmp_path, write_image, write_label, build_and_check, images, maps):
    root = tmp_path / "coco"
    for split in ("train2017", "val2017"):
        for number in range(2):
            write_image(root / f"{images}{split}/00000000000{number}.jpg")
            write_label(root / f"{maps}{split}/00000000000{number}.png", [0, 181, 255, 94])
    write_image(root / f"{images}test2017/000000000009.jpg")
    told = build_and_check("coco-stuff", root)
    split = open_split(told.out_folder / "train")
    assert len(split.manifest.classes) == 171
    names = [split.manifest.classes[label] for label in split.index(0).entry(0).class_ids]
    assert names == ["person", "bridge", "wood"]
    assert "void pixels: train 25.0%, val 25.0%" in told.out


def test_the_table_has_eleven_gaps():
    table = packaged_table("cocostuff")
    missing = sorted(set(range(182)) - set(table.values))
    assert [value + 1 for value in missing] == [12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91]
    assert dict(zip(table.values, table.names, strict=True))[156] == "sky-other"


def test_what_is_missing_is_named(tmp_path, write_image):
    with pytest.raises(SourceError, match=r"with \.jpg files; unzip train2017\.zip"):
        open_coco_stuff(tmp_path)
    write_image(tmp_path / "train2017/a.jpg")
    with pytest.raises(SourceError, match=r"with \.png files; unzip stuffthingmaps_trainval2017\.zip"):
        open_coco_stuff(tmp_path)


def test_copies_whose_values_are_category_ids(tmp_path, write_image, write_label, build_and_check, capsys):
    root = tmp_path / "coco"
    write_image(root / "images/train2017/a.jpg")
    write_label(root / "annotations/train2017/a.png", [0, 1, 28, 182])
    words = ["build", "--dataset", "coco-stuff", "--root", str(root), "--out", str(tmp_path / "wrong")]
    assert main([*words, "--workers", "1", "--quiet"]) == 2
    assert "label values out of range: 28" in capsys.readouterr().err
    told = build_and_check("coco-stuff", root, "--reduce-zero-label")
    split = open_split(told.out_folder / "train")
    names = [split.manifest.classes[label] for label in split.index(0).entry(0).class_ids]
    assert names == ["person", "umbrella", "wood"]


def test_real_maps_whose_values_are_category_ids(real_data, tmp_path, build_and_check):
    root = tmp_path / "coco"
    for place, found in (("images", "images"), ("annotations", "annotations")):
        (root / place).mkdir(parents=True)
        (root / place / "train2017").symlink_to(real_data / f"cocostuff/{found}/training")
    told = build_and_check("coco-stuff", root, "--reduce-zero-label")
    assert open_split(told.out_folder / "train").manifest.num_samples == 13
