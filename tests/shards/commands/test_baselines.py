"""The ways that the loader is compared with do the same work on the same samples."""

from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from maskshards.shards.__main__ import main
from maskshards.shards.augment.crop import CropSettings
from maskshards.shards.commands import baselines
from maskshards.shards.format.manifest import open_split

SETTINGS = CropSettings(crop_px=(32, 32), image_px=32, photometric="none")


@pytest.fixture(scope="module")
def made(make_split):
    return make_split("compared", [5, 4])


@pytest.fixture(scope="module")
def streams(made, tmp_path_factory):
    return baselines.ways(open_split(made.folder), SETTINGS, tmp_path_factory.mktemp("loose"), 3, 4, 2)


def test_loose_files_hold_what_the_shards_hold(made, tmp_path):
    paths = baselines.write_loose(open_split(made.folder), tmp_path)
    assert [path.stem for path in paths] == [key for keys in made.keys for key in keys]
    for path in paths:
        _, class_map = made.truth[path.stem]
        with Image.open(path) as file:
            assert (file.height, file.width) == class_map.shape
        labels = np.asarray(Image.open(baselines.label_path(path))).astype(int)
        np.testing.assert_array_equal(np.where(labels == 0, 65535, labels - 1), class_map)


def test_files_and_floats_crop_as_the_reference_does(made, streams):
    paths = streams["A"].args[0]
    item = baselines.CroppedFiles(paths, SETTINGS)[0]
    assert item["image"].shape == (3, 32, 32)
    assert item["image"].dtype == torch.float32
    assert item["masks"].shape == (len(item["labels"]), 32, 32)
    assert item["masks"].sum(0).max() == 1
    _, class_map = made.truth[paths[0].stem]
    assert set(item["labels"].tolist()) <= set(np.unique(class_map).tolist())


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves tars to the collector
def test_threads_and_stock_webdataset_deliver_every_pixel_and_label(made, streams):
    keys = [key for keys in made.keys for key in keys]
    flat, labels, sizes = next(streams["Q"]())
    assert sizes == [made.truth[key][1].shape for key in keys[:3]]
    expected = np.concatenate([made.truth[key][1].ravel() for key in keys[:3]])
    np.testing.assert_array_equal(np.where(labels == 0, 65535, labels.astype(int) - 1), expected)
    pixels, *_ = list(baselines.stock_webdataset([str(made.folder / "training-00000.tar")], 3, 0, epochs=2))
    np.testing.assert_array_equal(pixels[0].numpy(), flat)
    assert pixels[1].tolist() == [list(size) for size in sizes]
    assert int(pixels[2].long().sum()) == len(expected)


def test_streams_are_long_enough(streams):
    assert len(list(islice(streams["loader"](), 4))) == 4
    assert len(list(islice(streams["Q"](), 5))) == 4


def test_too_many_classes_for_a_byte_are_refused(made, tmp_path):
    split = open_split(made.folder)
    object.__setattr__(split.manifest, "classes", tuple(map(str, range(256))))
    with pytest.raises(ValueError, match="at most 255 classes, the split has 256"):
        baselines.write_loose(split, tmp_path)


@pytest.mark.slow
def test_the_command_compares_all_ways(made, capsys):
    words = ["--batch", "3", "--batches", "3", "--rounds", "1", "--crop", "32", "--baselines"]
    assert main(["bench", str(made.folder), *words]) == 0
    assert "loader against A:" in capsys.readouterr().out
