import os

import pytest

from maskshards.preprocess.errors import RejectedInput, SourceError
from maskshards.preprocess.inputs.labels import LabelRule
from maskshards.preprocess.sources.folder import FolderSource, find_labels_folder

CLASSES = ("sky", "road", "tree", "car", "person")
RULE = LabelRule(5, reduce_zero_label=True)


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")


def rejects_of(source, split="train"):
    return {reject.name: reject.reason for reject in source.listing(split).rejects}


def test_pairs_are_listed_by_name_whatever_the_ending(tmp_path):
    touch(
        tmp_path,
        "images/train/b.JPG",
        "images/train/a.png",
        "images/train/c d/e.f.jpeg",
        "images/train/.hidden",
    )
    touch(tmp_path, "labels/train/b.png", "labels/train/a.png", "labels/train/c d/e.f.png")
    source = FolderSource(tmp_path, CLASSES, RULE, labels_folder=find_labels_folder(tmp_path))
    assert source.splits() == ("train",)
    listing = source.listing("train")
    assert listing.names == ("a.png", "b.JPG", "c d/e.f.jpeg")
    assert listing.rejects == ()
    item = source.item("train", "c d/e.f.jpeg")
    assert (item.image_path, item.label_path) == ("images/train/c d/e.f.jpeg", "labels/train/c d/e.f.png")
    assert item.key == "c%20d/e%2Ef"
    assert source.read(item).image == b"x"


def test_every_file_without_a_place_is_named(tmp_path):
    touch(
        tmp_path,
        "images/train/a.jpg",
        "images/train/lonely.jpg",
        "images/train/notes.txt",
        "images/train/two.jpg",
    )
    touch(
        tmp_path,
        "images/train/two.png",
        "annotations/train/a.png",
        "annotations/train/two.png",
        "annotations/train/gone.png",
    )
    touch(tmp_path, "annotations/train/a.txt")
    source = FolderSource(tmp_path, CLASSES, RULE)
    assert source.listing("train").names == ("a.jpg",)
    found = rejects_of(source)
    assert "image without a label map annotations/train/lonely.png" in found["images/train/lonely.jpg"]
    assert "not an image" in found["images/train/notes.txt"]
    assert "duplicate key 'two'" in found["images/train/two.jpg"]
    assert "duplicate key 'two'" in found["images/train/two.png"]
    assert "label map without an image images/train/gone" in found["annotations/train/gone.png"]
    assert "not a label map" in found["annotations/train/a.txt"]
    assert len(found) == 6


def test_links_to_folders_and_names_that_are_no_text(tmp_path):
    touch(tmp_path, "images/train/a.jpg", "annotations/train/a.png", "elsewhere/b.jpg")
    (tmp_path / "images/train/linked").symlink_to(tmp_path / "elsewhere")
    name = os.fsdecode(b"\xff\xfe")
    touch(tmp_path, f"images/train/{name}.jpg", f"annotations/train/{name}.png")
    source = FolderSource(tmp_path, CLASSES, RULE)
    assert source.listing("train").names == ("a.jpg",)
    found = rejects_of(source)
    assert "a link to a folder" in found["images/train/linked"]
    assert "not valid UTF-8" in found[f"images/train/{name}.jpg"]


def test_own_folder_names_and_endings(tmp_path):
    touch(
        tmp_path, "leftImg8bit/train/ulm/ulm_1_leftImg8bit.png", "gtFine/train/ulm/ulm_1_gtFine_labelIds.png"
    )
    source = FolderSource(
        tmp_path,
        CLASSES,
        RULE,
        images_folder="leftImg8bit",
        labels_folder="gtFine",
        image_ending="_leftImg8bit.png",
        label_ending="_gtFine_labelIds.png",
    )
    listing = source.listing("train")
    assert listing.rejects == ()
    item = source.item("train", listing.names[0])
    assert item.key == "ulm/ulm_1"
    assert source.read(item).label == b"x"


def test_layouts_that_are_not_there(tmp_path):
    with pytest.raises(SourceError, match="no folder images/ in it; found an empty folder"):
        FolderSource(tmp_path, CLASSES, RULE).splits()
    touch(tmp_path, "images/train/a.jpg")
    with pytest.raises(SourceError, match="expected the label maps in annotations or labels; found images"):
        find_labels_folder(tmp_path)
    with pytest.raises(SourceError, match="annotations/train: no such folder"):
        FolderSource(tmp_path, CLASSES, RULE).listing("train")
    touch(tmp_path, "labels/train/a.png", "annotations/train/a.png")
    with pytest.raises(SourceError, match="both are there"):
        find_labels_folder(tmp_path)
    with pytest.raises(SourceError, match="the splits found are train"):
        FolderSource(tmp_path, CLASSES, RULE).listing("val")


def test_stamps_follow_the_files(tmp_path):
    touch(tmp_path, "images/train/a.jpg", "annotations/train/a.png")
    source = FolderSource(tmp_path, CLASSES, RULE)
    item = source.item("train", "a.jpg")
    before = source.stamp(item)
    assert before == source.stamp(item)
    os.utime(tmp_path / "annotations/train/a.png", ns=(1, 1))
    assert source.stamp(item) != before
    (tmp_path / "images/train/a.jpg").unlink()
    assert source.stamp(item).startswith("gone ")
    with pytest.raises(RejectedInput, match=r"images/train/a\.jpg cannot be read: No such file"):
        source.read(item)
