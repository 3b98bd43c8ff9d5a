import numpy as np
import pytest
from PIL import Image

from maskshards.preprocess.errors import SourceError
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
    assert "train: 3 images that its list does not name are passed over" in told.err
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
