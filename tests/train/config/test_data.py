import pytest

from maskshards.shards.augment.presets import IMAGENET_MEAN, IMAGENET_STD
from maskshards.train.config.data import DatasetConfig, TransformConfig, split_url
from maskshards.train.keys import ConfigError, check_section


def test_normalisation_is_imagenets_unless_said() -> None:
    assert (tuple(TransformConfig().mean), tuple(TransformConfig().std)) == (IMAGENET_MEAN, IMAGENET_STD)


def test_large_scale_jitter_has_one_range() -> None:
    transforms = TransformConfig()
    transforms.eval.img_size = 64
    transforms.train.jitter = "lsj"
    check_section(transforms, "transforms.")
    transforms.train.random_img_size_ratio_range = [0.5, 2.0]
    with pytest.raises(ConfigError, match=r"published range \[0\.1, 2\.0\]"):
        check_section(transforms, "transforms.")


def test_figures_of_the_other_scale_are_refused() -> None:
    transforms = TransformConfig(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    transforms.eval.img_size = 64
    with pytest.raises(ConfigError, match=r"transforms\.mean .* multiply mean and std by 255"):
        check_section(transforms, "transforms.")
    transforms.mean = list(IMAGENET_MEAN)
    with pytest.raises(ConfigError, match=r"transforms\.std .* multiply mean and std by 255"):
        check_section(transforms, "transforms.")
    transforms.mean, transforms.std = [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]  # bytes as they are
    check_section(transforms, "transforms.")


def test_an_empty_root_is_not_the_root_of_the_disk() -> None:
    with pytest.raises(ConfigError, match=r"datasets\.root is empty"):
        check_section(DatasetConfig(root=""), "datasets.")


@pytest.mark.parametrize(
    ("descriptor", "url"),
    [
        ("training", "data/training"),
        ("ADE20K:split=TRAIN", "data/training"),
        ("ADE20K:split=VAL", "data/validation"),
        ("CamVid:split=test", "data/test"),
        ("/elsewhere/training", "/elsewhere/training"),
        ("http://host:80/shards/training", "http://host:80/shards/training"),
    ],
)
def test_split_descriptors(descriptor: str, url: str) -> None:
    assert split_url("data/", descriptor) == url


@pytest.mark.parametrize("descriptor", ["ADE20K:root=x", "ADE20K:split="])
def test_broken_descriptor(descriptor: str) -> None:
    with pytest.raises(ConfigError, match=r"NAME:split=TRAIN\|VAL"):
        split_url("data", descriptor)
