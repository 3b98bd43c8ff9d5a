import os
import unicodedata

import pytest

from maskshards.preprocess.errors import RejectedInput, SourceError
from maskshards.preprocess.inputs.labels import LabelRule
from maskshards.preprocess.sources.folder import FolderSource
from maskshards.preprocess.sources.folder_pattern import find_images_folder, find_labels_folder

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
    assert "duplicate key 'two'" in found["images/train/two.jpg"]
    assert "duplicate key 'two'" in found["images/train/two.png"]
    assert "label map without an image images/train/gone" in found["annotations/train/gone.png"]
    assert len(found) == 4
    assert source.listing("train").notes == (
        "images/train: 1 file with other endings passed over (1 .txt)",
        "annotations/train: 1 file with other endings passed over (1 .txt)",
    )


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
    with pytest.raises(SourceError, match="in annotations or labels or masks; found images"):
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


def test_endings_are_compared_without_case_and_names_in_composed_form(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "Müller") for form in ("NFC", "NFD"))
    touch(tmp_path, "images/train/a.JPG", "labels/train/a.PNG", f"images/train/{decomposed}.jpg")
    touch(tmp_path, f"labels/train/{composed}.png")
    source = FolderSource(tmp_path, CLASSES, RULE, labels_folder="labels")
    listing = source.listing("train")
    assert listing.rejects == ()
    assert listing.names == (f"{decomposed}.jpg//{composed}.png", "a.JPG//a.PNG")
    items = [source.item("train", name) for name in listing.names]
    assert [item.label_path for item in items] == [f"labels/train/{composed}.png", "labels/train/a.PNG"]
    assert all(source.read(item).label == b"x" for item in items)


def test_two_label_maps_of_one_image_are_a_duplicate(tmp_path):
    touch(tmp_path, "images/train/a.jpg", "labels/train/a.PNG", "labels/train/a.png")
    source = FolderSource(tmp_path, CLASSES, RULE, labels_folder="labels")
    assert "label maps of a.PNG and a.png would be one sample" in rejects_of(source)["images/train/a.jpg"]


def test_what_operating_systems_leave_is_no_data(tmp_path):
    touch(tmp_path, "images/train/a.jpg", "labels/train/a.png", "images/train/._a.jpg", "images/.DS_Store")
    touch(tmp_path, "images/train/Thumbs.db", "labels/train/desktop.ini", "images/__MACOSX/train/._a.jpg")
    source = FolderSource(tmp_path, CLASSES, RULE, labels_folder="labels")
    assert source.splits() == ("train",)
    listing = source.listing("train")
    assert (listing.names, listing.rejects, listing.notes) == (("a.jpg",), (), ())


def test_a_split_without_label_maps_is_left_out_and_named(tmp_path):
    touch(tmp_path, "images/train/a.jpg", "labels/train/a.png", "images/test/b.jpg")
    source = FolderSource(tmp_path, CLASSES, RULE, labels_folder="labels")
    assert source.splits() == ("train",)
    (note,) = source.left_out()
    assert note.startswith("test: no label maps in labels/test/")
    with pytest.raises(SourceError, match="name the splits to build with --splits"):
        source.listing("test")


def test_split_first_layouts(tmp_path):
    touch(tmp_path, "Train/Rural/images_png/0.png", "Train/Rural/masks_png/0.png")
    touch(tmp_path, "Train/Urban/images_png/0.png", "Train/Urban/masks_png/0.png")
    touch(tmp_path, "Val/Rural/images_png/1.png", "Val/Rural/masks_png/1.png", "Train/readme.txt")
    source = FolderSource(
        tmp_path,
        CLASSES,
        RULE,
        images_folder="{split}/*/images_png",
        labels_folder="{split}/*/masks_png",
    )
    assert source.splits() == ("Train", "Val")
    listing = source.listing("Train")
    assert listing.rejects == ()
    items = [source.item("Train", name) for name in listing.names]
    assert [item.key for item in items] == ["Rural/0", "Urban/0"]
    assert [item.image_path for item in items] == [
        "Train/Rural/images_png/0.png",
        "Train/Urban/images_png/0.png",
    ]
    assert items[1].label_path == "Train/Urban/masks_png/0.png"


def test_usual_names_below_each_split_are_found(tmp_path):
    touch(tmp_path, "train/images/a.jpg", "train/labels/a.png", "classes.txt")
    assert (find_images_folder(tmp_path), find_labels_folder(tmp_path)) == (
        "{split}/images",
        "{split}/labels",
    )


def test_images_and_label_maps_in_one_folder(tmp_path):
    names = ("a.jpg", "a_mask.png", "sub/b.png", "sub/b_mask.png", "notes.txt")
    touch(tmp_path, *names)
    source = FolderSource(
        tmp_path,
        CLASSES,
        RULE,
        images_folder=".",
        labels_folder=".",
        label_ending="_mask.png",
        val_share=0.5,
    )
    listings = [source.listing(split) for split in ("training", "validation")]
    assert sorted(name for listing in listings for name in listing.names) == ["a.jpg", "sub/b.png"]
    assert [listing.rejects for listing in listings] == [(), ()]
    item = source.item("training", "sub/b.png")
    assert (item.key, item.label_path) == ("sub/b", "sub/b_mask.png")


def test_a_share_is_drawn_by_name_alone(tmp_path):
    touch(tmp_path, *(f"images/{number}.jpg" for number in range(200)))
    touch(tmp_path, *(f"labels/{number}.png" for number in range(200)))
    source = FolderSource(tmp_path, CLASSES, RULE, labels_folder="labels", val_share=0.2)
    assert source.splits() == ("training", "validation")
    training, validation = (set(source.listing(split).names) for split in source.splits())
    assert not training & validation
    assert len(training | validation) == 200
    assert 20 < len(validation) < 60
    touch(tmp_path, "images/more.jpg", "labels/more.png")
    again = set(source.listing("validation").names)
    assert again - {"more.jpg"} == validation


def test_lists_of_names(tmp_path):
    touch(tmp_path, "JPEGImages/a.jpg", "JPEGImages/b.jpg", "JPEGImages/c.jpg", "Masks/a.png", "Masks/b.png")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/train.txt").write_text("a\nlost\n")
    (tmp_path / "lists/val.txt").write_text("b.jpg\r\n")
    (tmp_path / "lists/trainval.txt").write_text("a\nb\n")
    source = FolderSource(
        tmp_path, CLASSES, RULE, images_folder="JPEGImages", labels_folder="Masks", lists="lists"
    )
    assert source.splits() == ("train", "val")
    listing = source.listing("train")
    assert listing.names == ("a.jpg",)
    assert listing.notes == ("train: 2 images that its list does not name passed over",)
    (reject,) = listing.rejects
    assert str(reject) == "lists/train.txt: line 2 names 'lost', of which there is no image in JPEGImages/"
    assert source.listing("val").names == ("b.jpg",)
    assert source.listing("trainval").names == ("a.jpg", "b.jpg")


def test_a_list_that_names_nothing_is_an_error_and_an_empty_one_is_left_out(tmp_path):
    touch(tmp_path, "photos/a.jpg", "photos/b.jpg", "masks/a.png")
    lists = {"train": "a\n", "val": "scans/b\n", "test": "b\n", "extra": ""}
    (tmp_path / "lists").mkdir()
    for name, text in lists.items():
        (tmp_path / f"lists/{name}.txt").write_text(text)
    source = FolderSource(
        tmp_path, CLASSES, RULE, images_folder="photos", labels_folder="masks", lists="lists"
    )
    assert source.splits() == ("train",)
    with pytest.raises(SourceError, match=r"val\.txt: none of its 1 names is that of an image in photos/"):
        source.left_out()
    with pytest.raises(SourceError, match=r"test\.txt: none of its 1 names is that of a label map in masks/"):
        source.listing("test")
    (tmp_path / "lists/val.txt").unlink()
    assert len(source.left_out()) == 2


def test_a_list_pairs_files_of_different_names(tmp_path):
    touch(tmp_path, "photos/img_1.jpg", "photos/img_2.jpg", "masks/mask_1.png", "masks/mask_2.png")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/train.txt").write_text("photos/img_1.jpg masks/mask_1.png\n")
    (tmp_path / "lists/val.txt").write_text("img_2.jpg,mask_2.png\n")
    (tmp_path / "lists/test.txt").write_text("img_2.jpg mask_3.png\nimg_1.jpg mask_1.png\n")
    source = FolderSource(
        tmp_path, CLASSES, RULE, images_folder="photos", labels_folder="masks", lists="lists"
    )
    assert source.splits() == ("test", "train", "val")
    (name,) = source.listing("train").names
    item = source.item("train", name)
    assert (item.key, item.image_path, item.label_path) == ("img_1", "photos/img_1.jpg", "masks/mask_1.png")
    assert source.item("val", *source.listing("val").names).label_path == "masks/mask_2.png"
    (reject,) = source.listing("test").rejects
    assert str(reject) == "photos/img_2.jpg: image without a label map masks/img_2.png"


def test_old_settings_stay_as_they_were(tmp_path):
    assert FolderSource(tmp_path, CLASSES, RULE).settings() == {
        "kind": "folder",
        "images_folder": "images",
        "labels_folder": "annotations",
        "image_ending": "",
        "label_ending": ".png",
    }


def test_one_label_map_of_two_images_is_refused_or_told(tmp_path):
    composed = unicodedata.normalize("NFC", "é")
    decomposed = unicodedata.normalize("NFD", "é")
    touch(tmp_path, f"images/train/{composed}.jpg", f"images/train/{decomposed}.jpg")
    touch(tmp_path, f"annotations/train/{composed}.png", "images/train/a.jpg", "annotations/train/a.png")
    source = FolderSource(tmp_path, CLASSES, RULE)
    assert len(source.listing("train").names) == 2
    (reason,) = rejects_of(source).values()
    assert f"has the same label map, {composed}.png; rename or remove one" in reason
    flat = tmp_path / "flat"
    touch(flat, "images/a.jpg", "images/b.jpg", "images/c.jpg", "masks/m.png", "masks/c.png")
    touch(flat, "lists/train.txt")
    (flat / "lists/train.txt").write_text("a.jpg m.png\nb.jpg m.png\nc.jpg c.png\n")
    listing = FolderSource(flat, CLASSES, RULE, labels_folder="masks", lists="lists").listing("train")
    assert (len(listing.names), listing.rejects) == (3, ())
    assert listing.notes == (
        "train: its list gives 1 label maps to several images each, such as m.png to a.jpg and b.jpg",
    )


def test_a_split_whose_folders_of_label_maps_are_empty_is_left_out(tmp_path):
    stars = {"images_folder": "{split}/*/images_png", "labels_folder": "{split}/*/masks_png"}
    touch(tmp_path, "Train/Rural/images_png/0.png", "Train/Rural/masks_png/0.png")
    touch(tmp_path, "Test/Urban/images_png/0.png")
    (tmp_path / "Test/Urban/masks_png").mkdir()
    source = FolderSource(tmp_path, CLASSES, RULE, **stars)
    assert source.splits() == ("Train",)
    assert source.left_out() == ("Test: no label maps in Test/, so this split is passed over",)
    assert "without a label map Test/Urban/masks_png/0.png" in next(iter(rejects_of(source, "Test").values()))
    touch(tmp_path, "Test/Urban/masks_png/0.bmp")  # something is there: refused rather than left out
    assert source.splits() == ("Test", "Train")


def test_a_split_of_images_alone_is_left_out_where_both_kinds_share_a_folder(tmp_path):
    touch(tmp_path, "train/a.jpg", "train/a_mask.png", "test/a.jpg")
    words = {"images_folder": "{split}", "labels_folder": "{split}", "label_ending": "_mask.png"}
    assert FolderSource(tmp_path, CLASSES, RULE, **words).splits() == ("train",)


def test_what_tools_put_beside_label_maps_is_passed_over_and_told(tmp_path):
    for name in "abcdefgh":
        touch(tmp_path, f"images/{name}.jpg", f"masks/{name}.png", f"masks/{name}_labelTrainIds.png")
    touch(tmp_path, "masks/lost.png")
    source = FolderSource(tmp_path, CLASSES, RULE, labels_folder="masks", val_share=0.5)
    listings = [source.listing(split) for split in source.splits()]
    assert sorted(name for listing in listings for name in listing.names) == [
        f"{name}.jpg" for name in "abcdefgh"
    ]
    assert [reject.name for listing in listings for reject in listing.rejects] == ["masks/lost.png"]
    note = "masks: 8 files beside label maps passed over (NAME_labelTrainIds.png)"
    assert {listing.notes for listing in listings} == {(note,)}
