"""One configuration a width, one model a width, and a dry run that keeps every part."""

from pathlib import Path

import pytest
import torch

from maskshards.train.bench.budgeted import Budget
from maskshards.train.bench.parts.setting import Setting


def setting(tiny: bool, *given: str) -> Setting:
    return Setting(torch.device("cpu"), Path("unused"), Budget(10), tiny, given)


def test_the_full_size_is_the_measured_one() -> None:
    full = setting(False)
    config = full.config(2048)
    assert full.widths == (256, 2048)
    assert (config.model.dino_hub, config.bs, config.decoder_head.hidden_dim) == ("dinov3_vitl16", 16, 2048)
    assert tuple(config.transforms.train.crop_size) == (512, 512)
    assert config.m2f_train.num_points == 12544
    assert config.model_dtype.name == "BFLOAT16"


def test_the_users_settings_have_the_last_word() -> None:
    assert setting(True, "bs=1").config(32).bs == 1
    with pytest.raises(ValueError, match="unknown key"):
        setting(True, "batch=1").config(32)


def test_a_model_is_built_once_a_width() -> None:
    tiny = setting(True)
    assert tiny.bench(32) is tiny.bench(32)
    assert tiny.bench(64).config.decoder_head.hidden_dim == 64


def test_the_floor_is_known_once_the_bandwidth_is() -> None:
    tiny = setting(True)
    assert tiny.floor_ms(1e9) is None
    tiny.copy_gb_per_s = 500.0
    assert tiny.floor_ms(1e9) == pytest.approx(2.0)
