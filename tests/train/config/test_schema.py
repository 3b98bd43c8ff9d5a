import pytest
import torch
from omegaconf import OmegaConf

from maskshards.train.config.schema import BackboneLayers, ConfigError, ModelDtype, TrainConfig, nearest


def test_schema_is_accepted_by_omegaconf_with_the_reference_defaults() -> None:
    tree = OmegaConf.structured(TrainConfig)
    assert (tree.bs, tree.n_gpus, tree.num_workers, tree.seed) == (2, 8, 6, 100)
    assert (tree.optimizer.lr, tree.optimizer.gradient_clip) == (1e-3, 35.0)
    assert (tree.decoder_head.num_classes, tree.decoder_head.hidden_dim) == (150, 2048)
    assert list(tree.transforms.mean) == [123.675, 116.28, 103.53]


def test_dataset_root_has_no_default() -> None:
    assert OmegaConf.missing_keys(OmegaConf.structured(TrainConfig)) == {"datasets.root"}


def test_dtype_knows_its_torch_type() -> None:
    assert ModelDtype.BFLOAT16.autocast_dtype is torch.bfloat16
    assert ModelDtype.FLOAT32.autocast_dtype is torch.float32


def test_layer_names_are_plain_words_for_the_model_room() -> None:
    assert BackboneLayers.FOUR_LAST == "FOUR_LAST"


@pytest.mark.parametrize(
    ("word", "offered"), [("optimiser.lr", "optimizer.lr"), ("lr", "optimizer.lr"), ("zzzzzz", "known are")]
)
def test_nearest_offers_something(word: str, offered: str) -> None:
    assert offered in nearest(word, ["bs", "optimizer.lr", "seed"])


def test_config_error_is_a_user_fault() -> None:
    assert issubclass(ConfigError, ValueError)


@pytest.mark.parametrize(("given", "images"), [(None, 16), (48, 48)])
def test_global_batch_is_bs_times_gpus_unless_set(given: int | None, images: int) -> None:
    assert TrainConfig(global_batch=given).images_per_step == images
