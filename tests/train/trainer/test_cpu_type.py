"""bfloat16 on a CPU: where the recipe says so, or else where the processor has units for it, and told."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from maskshards.shards.order.order import World
from maskshards.train.config.load import load_config
from maskshards.train.distributed.ranks import Ranks, to_message
from maskshards.train.trainer import cpu_type
from maskshards.train.trainer.cpu_type import computes_in_bfloat16, has_bfloat16_units, with_cpu_type

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ALONE = Ranks(World(), CPU)
PROCESSORS = {
    "flags\t\t: fpu avx512f avx512_bf16 gfni": True,
    "flags\t\t: fpu avx512f amx_bf16 amx_tile": True,
    "Features\t: fp asimd bf16 i8mm": True,
    "flags\t\t: fpu avx2 avx512f": False,
    "model name\t: the bf16 avx512_bf16 wonder": False,
    "": False,
}


@pytest.fixture(autouse=True)
def _asked_anew() -> None:
    has_bfloat16_units.cache_clear()


@pytest.mark.parametrize("text", PROCESSORS)
def test_units_are_read_off_the_flags(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{text}\n", encoding="utf-8")
    monkeypatch.setattr(cpu_type, "CPUINFO", tmp_path / "cpuinfo")
    assert has_bfloat16_units() is PROCESSORS[text]


def test_a_system_that_does_not_tell_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_type, "CPUINFO", tmp_path / "nothing")
    assert not has_bfloat16_units()


@pytest.mark.parametrize(
    ("words", "units", "device", "expected"),
    [
        (["model_dtype=BFLOAT16"], True, CPU, True),
        (["model_dtype=BFLOAT16"], False, CPU, False),
        (["model_dtype=BFLOAT16", "cpu_autocast=False"], True, CPU, False),
        (["model_dtype=BFLOAT16", "cpu_autocast=True"], False, CPU, True),
        (["model_dtype=FLOAT32", "cpu_autocast=True"], True, CPU, False),
        (["model_dtype=FLOAT32"], True, CUDA, False),
        (["model_dtype=BFLOAT16", "cpu_autocast=False"], False, CUDA, True),
    ],
)
def test_the_recipe_first_then_the_processor(
    tiny_run: list[str], monkeypatch: pytest.MonkeyPatch, words: list[str], units: bool,
    device: torch.device, expected: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr(cpu_type, "has_bfloat16_units", lambda: units)
    assert computes_in_bfloat16(load_config([*tiny_run, *words]), device) is expected


@pytest.mark.parametrize("units", [True, False])
def test_a_run_says_what_it_chose_and_keeps_to_it(
    tiny_run: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, units: bool
) -> None:
    monkeypatch.setattr(cpu_type, "has_bfloat16_units", lambda: units)
    with caplog.at_level(logging.INFO):
        chosen = with_cpu_type(load_config([*tiny_run, "model_dtype=BFLOAT16"]), ALONE, lambda: None)
    assert chosen.cpu_autocast is units
    assert f"computing in {'bfloat16' if units else 'float32'}: this processor has" in caplog.text
    assert with_cpu_type(chosen, ALONE, lambda: None) is chosen


@pytest.mark.parametrize("before", [True, False])
def test_a_run_that_goes_on_elsewhere_computes_as_before(
    tiny_run: list[str], monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    monkeypatch.setattr(cpu_type, "has_bfloat16_units", lambda: not before)
    config = load_config([*tiny_run, "model_dtype=BFLOAT16"])
    assert with_cpu_type(config, ALONE, lambda: {"cpu_autocast": before}).cpu_autocast is before


def test_float32_recipes_are_left_as_they_are(tiny_run: list[str]) -> None:
    config = load_config([*tiny_run, "model_dtype=FLOAT32"])
    assert with_cpu_type(config, ALONE, lambda: None) is config


def test_what_the_first_rank_chose_can_cross_to_the_others(
    tiny_run: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes on a CPU ended with a TypeError: alone, nothing is sent."""

    def sent(_: Ranks, work: Callable[[], object]) -> object:
        return json.loads(to_message(work()))["value"]

    monkeypatch.setattr(Ranks, "from_first", sent)
    config = load_config([*tiny_run, "model_dtype=BFLOAT16"])
    for before in (None, {"cpu_autocast": True}):
        assert isinstance(with_cpu_type(config, ALONE, lambda before=before: before).cpu_autocast, bool)  # type: ignore[misc]
