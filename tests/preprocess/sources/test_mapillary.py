import json

import pytest

from maskshards.preprocess.errors import SourceError
from maskshards.preprocess.sources.mapillary import open_mapillary
from maskshards.shards.format.manifest import open_split

LABELS = [
    {"name": "animal--bird", "readable": "Bird", "evaluate": True, "color": [165, 42, 42], "instances": True},
    {"name": "void--static", "readable": "Static", "evaluate": False, "color": [0, 0, 0], "instances": False},
    {"name": "nature--sky", "readable": "Sky", "evaluate": True, "color": [70, 130, 180], "instances": False},
    {"name": "void--unlabeled", "readable": "Unlabeled", "evaluate": False, "color": [0, 0, 0]},
]


def write_release(root, write_image, write_label, folders):
    for split in ("training", "validation", "testing"):
        for name in ("a_1-x", "b"):
            write_image(root / f"{split}/images/{name}.jpg")
            for folder in folders if split != "testing" else ():
                write_label(root / f"{split}/{folder}/{name}.png", [0, 1, 2, 3])
                write_image(root / f"{split}/{folder.replace('labels', 'panoptic')}/{name}.png")


def test_release_2_as_unzipped(tmp_path, write_image, write_label, build_and_check):
    root = tmp_path / "mapillary"
    write_release(root, write_image, write_label, ("v1.2/labels", "v2.0/labels"))
    (root / "config_v2.0.json").write_text(json.dumps({"labels": LABELS}))
    (root / "config_v1.2.json").write_text(json.dumps({"labels": LABELS[:2] + LABELS[3:]}))
    told = build_and_check("mapillary", root)
    split = open_split(told.out_folder / "training")
    assert split.manifest.classes == ("Bird", "Sky")
    assert split.manifest.palette == ((165, 42, 42), (70, 130, 180))
    assert split.index(0).entry(0).class_ids == (0, 1)
    assert "void pixels: training 50.0%, validation 50.0%" in told.out
    assert "testing: no label maps in testing/v2.0/labels/" in told.err
    assert open_mapillary(root, "v1.2/labels").classes == ("Bird",)


def test_release_1(tmp_path, write_image, write_label):
    write_release(tmp_path, write_image, write_label, ("labels",))
    with pytest.raises(SourceError, match=r"config\.json: not the release's configuration"):
        open_mapillary(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"labels": [*LABELS, {**LABELS[2], "name": "sky--2"}]}))
    source = open_mapillary(tmp_path)
    assert source.classes == ("animal--bird", "nature--sky", "sky--2")  # two labels read "Sky"
    assert source.splits() == ("training", "validation")
    with pytest.raises(SourceError, match=r"no SPLIT/v2\.0/labels in it; found labels"):
        open_mapillary(tmp_path, "v2.0/labels")
