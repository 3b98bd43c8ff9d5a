"""The made scenes are what the demo promises: repeatable, varied, with every class and with holes."""

import errno
import hashlib

import numpy as np
import pytest
from PIL import Image

from maskshards.preprocess.scenes import CLASSES, draw_scene, write_scenes


def _digests(folder):
    return {p.relative_to(folder): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*.*g")}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_scenes(tmp_path / name, training=3, validation=2, seed=seed)
    assert len(_digests(tmp_path / "a")) == 10
    assert _digests(tmp_path / "a") == _digests(tmp_path / "b")
    assert not set(_digests(tmp_path / "a").values()) & set(_digests(tmp_path / "c").values())


def test_images_and_labels_pair_up_and_name_every_class(tmp_path):
    write_scenes(tmp_path, training=4, validation=1)
    assert (tmp_path / "classes.txt").read_text().split() == list(CLASSES)
    for image in (tmp_path / "images").rglob("*.jpg"):
        label = tmp_path / "annotations" / image.parent.name / f"{image.stem}.png"
        with Image.open(image) as picture, Image.open(label) as labels:
            assert picture.size == labels.size
            assert (picture.mode, labels.mode) == ("RGB", "L")


def test_scenes_vary_in_size_hold_all_classes_and_unlabelled_pixels():
    scenes = [draw_scene(0, "training", number) for number in range(40)]
    assert len({label.shape for _, label in scenes}) > 30
    seen = np.bincount(np.concatenate([np.unique(label) for _, label in scenes]), minlength=len(CLASSES) + 1)
    assert len(CLASSES) >= 10
    assert seen[0] == 40
    assert (seen[1:] >= 4).all()


def test_the_split_is_part_of_the_seed():
    train, val = (draw_scene(0, split, 0)[0] for split in ("training", "validation"))
    assert train.shape != val.shape or not np.array_equal(train, val)


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="not empty"):
        write_scenes(tmp_path, training=1, validation=1)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_full_disk_is_named_and_the_same_call_goes_on(tmp_path, monkeypatch):
    def full(image, path, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", full)
        with pytest.raises(OSError, match=r"scene_training_00000\.jpg") as raised:
            write_scenes(tmp_path / "out", training=1, validation=1)
        assert raised.value.errno == errno.ENOSPC
    write_scenes(tmp_path / "out", training=1, validation=1)
    assert len(list((tmp_path / "out").rglob("*.png"))) == 2
