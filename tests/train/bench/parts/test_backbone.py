from pathlib import Path

import pytest
import torch

from maskshards.train.bench.budgeted import Budget, NotHere
from maskshards.train.bench.parts import backbone
from maskshards.train.bench.parts.setting import Setting
from maskshards.train.model.backbone.architectures import ModelError


def setting(out: Path) -> Setting:
    return Setting(torch.device("cpu"), out, Budget(600), True)


def test_both_precisions_are_timed_as_they_stand_and_compiled(tmp_path: Path) -> None:
    made = setting(tmp_path)
    before = made.bench(32).segmenter.backbone
    found = backbone.precisions(made)
    assert found["bfloat16"].keys() == found["fp8"].keys() == {"eager_ms", "compiled_ms"}
    assert all(0 < error < 0.2 for error in found["relative error"])
    assert before.precision == "full"
    assert all(p.dtype is not torch.float8_e4m3fn for p in before.parameters())


def test_a_device_without_the_units_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(blocks: torch.nn.Module) -> None:
        raise ModelError("needs a GPU of compute capability 8.9")

    monkeypatch.setattr(backbone, "in_fp8", refuse)
    with pytest.raises(NotHere, match=r"capability 8\.9"):
        backbone.precisions(setting(tmp_path))
