import numpy as np
import pytest
from PIL import Image

from maskshards.preprocess.errors import SourceError
from maskshards.preprocess.sources.opening import SourceRequest, open_source, reopen_source, void_is_said
from maskshards.preprocess.sources.voc import open_voc
from maskshards.shards.format.manifest import open_split


@pytest.fixture
def devkit(tmp_path, write_image):
    """VOCtrainval as unzipped: images of all tasks, palette masks of some, lists."""
    root = tmp_path / "data"
    base = root / "VOCdevkit/VOC2012"
    for number in range(5):
        write_image(base / f"JPEGImages/2007_00000{number}.jpg")
    for folder in ("SegmentationClass", "SegmentationObject", "Annotations"):
        (base / folder).mkdir()
    for number in range(4):
        values = np.full((24, 32), 255, np.uint8)
        values[:, :8], values[:, 10:20] = 0, 15
        mask = Image.frombytes("P", (32, 24), values.tobytes())
        mask.putpalette(bytes(range(256)) * 3)
        for folder in ("SegmentationClass", "SegmentationObject"):
            mask.save(base / f"{folder}/2007_00000{number}.png")
    lists = base / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (base / "ImageSets/Main").mkdir()
    for name, numbers in (("train", (0, 1)), ("val", (2, 3)), ("trainval", (0, 1, 2, 3)), ("test", (4,))):
        (lists / f"{name}.txt").write_text("".join(f"2007_00000{number}\n" for number in numbers))
    return root


def test_as_unzipped(devkit, build_and_check):
    told = build_and_check("voc", devkit)
    assert sorted(path.parent.name for path in told.out_folder.glob("*/manifest.json")) == ["train", "val"]
    split = open_split(told.out_folder / "train")
    assert split.manifest.num_samples == 2
    assert split.manifest.classes[15] == "person"
    assert split.manifest.palette[15] == (192, 128, 128)
    entry = split.index(0).entry(0)
    assert (entry.class_ids, entry.areas) == ((0, 15), (8 * 24, 10 * 24))
    assert "train: 3 images that its list does not name passed over" in told.err
    assert "test: no label maps in" in told.err


def test_other_masks_and_splits(devkit):
    base = devkit / "VOCdevkit/VOC2012"
    (base / "SegmentationClass").rename(base / "SegmentationClassAug")
    with pytest.raises(SourceError, match=r"no SegmentationClass/ in it; found .*SegmentationClassAug"):
        open_voc(base)
    source = open_voc(base, "SegmentationClassAug")
    assert source.listing("trainval").names == tuple(f"2007_00000{number}.jpg" for number in range(4))
    with pytest.raises(SourceError, match="no JPEGImages/ in it or in VOCdevkit/VOC2012/"):
        open_voc(base / "ImageSets")


@pytest.fixture
def export(tmp_path, write_image):
    """A VOC layout as annotation tools write it, without lists: images, and masks by `paint(values)`."""

    def make(paint, image_ending=".jpg", count=4):
        root = tmp_path / "export"
        for number in range(count):
            write_image(root / f"JPEGImages/frame_{number}{image_ending}")
            values = np.zeros((24, 32), np.uint8)
            values[:, 8:20], values[:, 30:] = 1, 2
            (root / "SegmentationClass").mkdir(exist_ok=True)
            paint(values).save(root / f"SegmentationClass/frame_{number}.png")
        return root

    return make


def coloured(values):
    return Image.fromarray(np.array([[0, 0, 0], [128, 64, 128], [10, 20, 30]], np.uint8)[values])


def test_an_export_of_cvat_has_colours_and_a_table_of_its_own(export, build_and_check):
    root = export(coloured, ".png")
    (root / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\nroad paved:10,20,30::\nroad:128,64,128::\n"
    )
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "default.txt").write_text("".join(f"frame_{number}\n" for number in range(4)))
    told = build_and_check("voc", root)
    manifest = open_split(told.out_folder / "default").manifest
    assert manifest.classes == ("background", "road paved", "road")
    assert manifest.palette[2] == (128, 64, 128)
    assert open_split(told.out_folder / "default").index(0).entry(0).areas == (18 * 24, 2 * 24, 12 * 24)


def test_an_export_of_labelme_has_a_class_list_and_no_splits(export, build_and_check):
    def palette(values):
        mask = Image.frombytes("P", (32, 24), np.where(values == 2, 255, values).astype(np.uint8).tobytes())
        mask.putpalette(bytes(range(256)) * 3)
        return mask

    root = export(palette, count=12)
    (root / "class_names.txt").write_text("_background_\ncat\n")
    with pytest.raises(SourceError, match=r"no ImageSets/Segmentation/ .* --val-share 0.1, or give lists"):
        open_source(SourceRequest("voc", root))
    told = build_and_check("voc", root, "--val-share", "0.4")
    splits = [open_split(told.out_folder / name) for name in ("training", "validation")]
    assert sum(split.manifest.num_samples for split in splits) == 12
    assert splits[0].manifest.classes == ("_background_", "cat")
    assert "void pixels: training 6.2%" in told.out


def test_classes_of_ones_own_are_said_or_the_release_is_named(export, caplog):
    root = export(coloured)
    source = open_source(SourceRequest("voc", root, val_share=0.5))
    assert len(source.classes) == 21
    assert "images are not named like those of PASCAL VOC (frame_" in caplog.text
    (root / "table.csv").write_text("background,0,0,0\nroad,128,64,128\ncar,10,20,30\n")
    source = open_source(SourceRequest("voc", root, val_share=0.5, colours=root / "table.csv"))
    assert source.classes == ("background", "road", "car")
    again = reopen_source(source.settings(), source.dataset, source.classes, source.label_rule, str(root))
    assert again.settings() == source.settings()
    (root / "classes.txt").write_text("a\nb\nc\n")
    request = SourceRequest("voc", root, val_share=0.5, classes=root / "classes.txt")
    assert not void_is_said(request)
    assert open_source(request).label_rule.describe() == "0..2, or 255 for void"
    with pytest.raises(SourceError, match="needs --classes FILE"):
        open_source(SourceRequest("voc", root, val_share=0.5, ignore_index=0))


def test_other_years_are_found(devkit):
    (devkit / "VOCdevkit/VOC2012").rename(devkit / "VOCdevkit/VOC2010")
    assert open_voc(devkit).images_folder == "VOCdevkit/VOC2010/JPEGImages"
    assert open_voc(devkit / "VOCdevkit").images_folder == "VOC2010/JPEGImages"
