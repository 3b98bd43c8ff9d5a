import os
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from maskshards.train.config.schema import BackboneLayers, ConfigError, TrainConfig


def test_schema_is_accepted_by_omegaconf_with_the_reference_defaults() -> None:
    tree = OmegaConf.structured(TrainConfig)
    assert (tree.bs, tree.n_gpus, tree.num_workers, tree.seed) == (2, 8, 6, 100)
    assert (tree.optimizer.lr, tree.optimizer.gradient_clip) == (1e-3, 35.0)
    assert (tree.decoder_head.num_classes, tree.decoder_head.hidden_dim) == (None, 2048)
    assert list(tree.transforms.mean) == [123.675, 116.28, 103.53]


def test_dataset_root_has_no_default() -> None:
    assert OmegaConf.missing_keys(OmegaConf.structured(TrainConfig)) == {"datasets.root"}


def test_layer_names_are_plain_words_for_the_model_room() -> None:
    assert BackboneLayers.FOUR_LAST == "FOUR_LAST"


def test_config_error_is_a_user_fault() -> None:
    assert issubclass(ConfigError, ValueError)


@pytest.mark.parametrize(("given", "images"), [(None, 16), (48, 48)])
def test_global_batch_is_bs_times_gpus_unless_set(given: int | None, images: int) -> None:
    assert TrainConfig(global_batch=given).images_per_step == images


def test_the_schema_loads_nothing_heavy() -> None:
    program = (
        "import sys, maskshards.train.config.load, maskshards.train.config.explain;"
        "sys.exit(bool({'torch', 'transformers', 'numpy', 'scipy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], env={**os.environ}).returncode == 0
