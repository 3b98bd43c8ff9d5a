"""`compile_mode=graph` in a run: the same training to rounding, continued bit for bit, or refused."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from maskshards.shards.order.order import World
from maskshards.train.checkpoint.checkpoint import read_checkpoint
from maskshards.train.config.load import load_config
from maskshards.train.config.schema import ConfigError
from maskshards.train.distributed.early_stop import Stopped
from maskshards.train.distributed.ranks import Ranks
from maskshards.train.distributed.stop_signals import StopSignals
from maskshards.train.tracking.metrics_log import read_metrics
from maskshards.train.trainer.build import build_parts
from maskshards.train.trainer.run import run_training
from maskshards.train.trainer.step import Objective

pytestmark = pytest.mark.usefixtures("shallow")
CPU = torch.device("cpu")
WORDS = [
    "compile_mode=graph", "bs=1", "global_batch=2", "ema.decay=0.9", "log.interval=1",
    "activation_checkpointing=True", "guards.non_finite=skip",
]  # fmt: skip


def train(arguments: list[str], *, cut: bool = False) -> None:
    """To the end, or one step far."""
    with StopSignals() as stop:
        if cut:
            stop.number = signal.SIGTERM
        run_training(load_config(arguments), Ranks(World(), CPU), stop)


def lines(run: Path) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run / "metrics.jsonl") if line["kind"] == "train"]


@pytest.mark.slow
def test_a_recorded_run_trains_the_same_and_is_continued_bit_for_bit(
    tiny_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two micro-steps, an average, checkpointed activations, a step that is left out."""
    compare = Objective.__call__

    def spoilt(self: Objective, batch: Any, *more: Any) -> Any:
        ready = self.prepare(batch)
        if 4 in ready.crops.positions:  # in the third step
            ready.crops.images.fill_(torch.nan)
        return compare(self, ready, *more)

    monkeypatch.setattr(Objective, "__call__", spoilt)
    folders = [tmp_path / name for name in ("plain", "recorded", "parted")]
    train([*tiny_run, *WORDS, "compile_mode=default", f"output_dir={folders[0]}"])
    train([*tiny_run, *WORDS, f"output_dir={folders[1]}"])
    with pytest.raises(Stopped):
        train([*tiny_run, *WORDS, f"output_dir={folders[2]}"], cut=True)
    train([*tiny_run, *WORDS, f"output_dir={folders[2]}", "resume_from=auto"])
    plain, recorded, parted = (lines(folder) for folder in folders)
    for ours, theirs in zip(recorded, plain, strict=True):
        assert ours["order"] == theirs["order"]
        if ours["step"] != 3:
            for figure in ("loss", "loss_mask", "loss_dice", "loss_class", "grad_norm"):
                assert ours[figure] == pytest.approx(theirs[figure], rel=2e-2)
    assert [line["loss"] for line in parted] == [line["loss"] for line in recorded]
    weights = [read_checkpoint(folder / "model_final.pth").weights for folder in folders[1:]]
    assert all(torch.equal(weights[0][name], value) for name, value in weights[1].items())
    assert all(value.isfinite().all() for value in weights[0].values())


def test_a_recorded_step_reports_the_phases_that_it_has(tiny_run: list[str], tmp_path: Path) -> None:
    train([*tiny_run, "compile_mode=graph", "scheduler.total_iter=2"])
    phases = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if line["kind"] == "phases"]
    assert {name for name in phases[-1] if name.endswith("_ms")} == {
        "wait_ms", "loss_ms", "backward_ms", "optimiser_ms", "step_ms",
    }  # fmt: skip


def test_several_ranks_and_other_heads_are_refused(tiny_run: list[str]) -> None:
    config = load_config([*tiny_run, "compile_mode=graph", "n_gpus=2"])
    with pytest.raises(ConfigError, match="records the step of one process, not of 2: batch norms"):
        build_parts(config, Ranks(World(0, 2), CPU))
    with pytest.raises(ConfigError, match="a linear head's is a few kernels"):
        load_config([*tiny_run, "compile_mode=graph", "decoder_head.type=linear"])
