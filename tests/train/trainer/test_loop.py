import itertools
import json
import math
import os
import signal
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from maskshards.shards.batch import RaggedBatch
from maskshards.shards.loading.lookahead import Lookahead
from maskshards.shards.order.order import World
from maskshards.train.checkpoint.checkpoint import read_checkpoint
from maskshards.train.checkpoint.run_files import BEST, LAST, checkpoints_of
from maskshards.train.config.load import load_config
from maskshards.train.config.schema import TrainConfig
from maskshards.train.distributed.early_stop import Stopped
from maskshards.train.distributed.ranks import Ranks
from maskshards.train.distributed.stop_signals import StopSignals
from maskshards.train.model.ops.fused import set_switch
from maskshards.train.tracking.metrics_log import MetricsFile, read_metrics
from maskshards.train.tracking.progress import ProgressLine
from maskshards.train.trainer import loop
from maskshards.train.trainer.build import build_parts, open_loader
from maskshards.train.trainer.guards import Guard, GuardError
from maskshards.train.trainer.instruments import Instruments
from maskshards.train.trainer.loop import checkpoint_due, evaluation_due, is_due, one_step
from maskshards.train.trainer.run import run_training
from maskshards.train.trainer.session import Session

pytestmark = pytest.mark.usefixtures("shallow")
ALONE = Ranks(World(), torch.device("cpu"))


@pytest.mark.parametrize(
    ("step", "every", "total", "due"),
    [
        (0, 5, 10, False),
        (4, 5, 10, False),
        (5, 5, 10, True),
        (10, 5, 10, True),
        (7, 5, 7, True),
        (7, 50, 8, False),
    ],
)
def test_is_due_every_so_often_and_at_the_end(step: int, every: int, total: int, due: bool) -> None:
    assert is_due(step, every, total) is due


def test_cadence_over_a_whole_run() -> None:
    config = TrainConfig()
    config.scheduler.total_iter, config.eval.eval_interval, config.checkpoint.interval = 10, 4, 3
    assert [step for step in range(11) if evaluation_due(config, step)] == [4, 8, 10]
    assert [step for step in range(11) if checkpoint_due(config, step)] == [3, 4, 6, 8, 9, 10]
    config.eval.before_training = True
    assert evaluation_due(config, 0)


def train(arguments: list[str], device: torch.device = ALONE.device) -> None:
    with StopSignals() as stop:
        run_training(load_config(arguments), Ranks(World(), device), stop)


def final_weights(run: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(run / "model_final.pth").weights


def test_with_cuda_graphs_a_step_begins_once_the_gradients_of_the_last_are_gone_and_ends_the_same(
    tiny_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is compiled here; it is the order around the mark that is looked at."""
    arguments = [*tiny_run, "bs=1", "global_batch=2"]  # two micro-steps a step
    train(arguments)
    expected = final_weights(tmp_path / "run")
    guards: list[Guard] = []
    settled: list[bool] = []
    monkeypatch.setattr("maskshards.train.trainer.build.compile_in_place", lambda *_, **__: None)
    monkeypatch.setattr(Guard, "begin_step", lambda guard: guards.append(guard))

    def mark(mode: str) -> None:
        assert mode == "reduce-overhead"
        settled.append(
            guards[-1]._pending is None and all(p.grad is None for p in guards[-1].decoder.parameters())
        )

    monkeypatch.setattr("maskshards.train.trainer.loop.begin_step", mark)
    again = f"output_dir={tmp_path / 'again'}"
    train([*arguments, again, "compile=model", "compile_mode=reduce-overhead"])
    assert settled == [True] * 8
    found = final_weights(tmp_path / "again")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_run_leaves_its_files_and_nothing_half_written(tiny_run: list[str], tmp_path: Path) -> None:
    train([*tiny_run, "eval.before_training=True"])
    run = tmp_path / "run"
    assert [path.name for path in checkpoints_of(run, LAST)] == ["step-00000004", "step-00000008"]
    assert len(checkpoints_of(run, BEST)) == 1
    assert {"config.yaml", "metrics.jsonl", "model_final.pth", "model_final.json"} <= set(os.listdir(run))
    assert [path for path in run.rglob("*") if path.name.startswith(".")] == []
    records = read_metrics(run / "metrics.jsonl")
    assert [record["step"] for record in records if record["kind"] == "eval"] == [0, 4, 8]
    assert [record["step"] for record in records if record["kind"] == "train"] == [1, 2, 4, 6, 8]
    assert all(record["num_images"] == 4 for record in records if record["kind"] == "eval")
    state = json.loads((run / "model_final.json").read_text())
    assert (state["step"], state["position"]) == (8, 16)
    assert state["class_names"] == ["ground", "box", "disc"]


@pytest.mark.parametrize("head", ["m2f", "linear"])
def test_phases_are_timed_at_the_end_of_each_interval_and_change_no_bit(
    tiny_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    short = ["scheduler.total_iter=4", "eval.max_val_samples=1", "log.tensorboard=False", "log.report=False"]
    arguments = [*tiny_run, *short, f"decoder_head.type={head}", "bs=1", "global_batch=2"]  # two micro-steps
    looks = itertools.count()
    ticking = SimpleNamespace(perf_counter=lambda: next(looks) / 1000)
    monkeypatch.setattr("maskshards.train.tracking.phase_timer.time", ticking)
    train(arguments)
    timed = [one for one in read_metrics(tmp_path / "run" / "metrics.jsonl") if one["kind"] == "phases"]
    assert [record["step"] for record in timed] == [2, 4]
    middle = ["adapter", "pixel_decoder", "query_decoder"] if head == "m2f" else ["linear_head"]
    names = ["wait", "crop", "backbone", *middle, "loss", "backward", "optimiser"]
    for record in timed:
        assert list(record) == ["kind", "step", *(f"{name}_ms" for name in names), "step_ms"]
        # Two looks at the clock around each of two waits belong to no phase; each is a millisecond here.
        assert sum(record[f"{name}_ms"] for name in names) + 4 == pytest.approx(record["step_ms"])
    monkeypatch.setattr(
        "maskshards.train.tracking.phase_timer.StepPhases.timed", lambda *_, **__: nullcontext()
    )
    train([*arguments, f"output_dir={tmp_path / 'untimed'}"])
    assert not [
        one for one in read_metrics(tmp_path / "untimed" / "metrics.jsonl") if one["kind"] == "phases"
    ]
    assert same(final_weights(tmp_path / "run"), final_weights(tmp_path / "untimed"))


def test_the_loss_falls(tiny_run: list[str], tmp_path: Path) -> None:
    train([*tiny_run, "scheduler.total_iter=16", "eval.max_val_samples=1", "eval.eval_interval=16"])
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    losses = [record["loss"] for record in records if record["kind"] == "train"]
    assert sum(losses[-2:]) / 2 < 0.9 * losses[0]


@pytest.mark.parametrize("head", ["m2f", "linear", "linear ema"])
def test_stopped_and_continued_equals_undisturbed_bit_for_bit(
    tiny_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    arguments = [*tiny_run, f"decoder_head.type={head.split()[0]}"]
    if head.endswith("ema"):
        arguments.append("ema.decay=0.9")
    train(arguments)
    whole = final_weights(tmp_path / "run")
    again = [*arguments, f"output_dir={tmp_path / 'cut'}", "resume_from=auto"]
    real = loop.one_step
    taken = [0]

    def interrupted(*given: object) -> None:
        real(*given)  # type: ignore[arg-type]
        taken[0] += 1
        if taken[0] in (2, 5):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop, "one_step", interrupted)
    for _ in range(2):
        with pytest.raises(Stopped):
            train(again)
    train(again)
    assert taken[0] == 8
    assert same(final_weights(tmp_path / "cut"), whole)
    cut, straight = (
        [record for record in read_metrics(tmp_path / name / "metrics.jsonl") if record["kind"] == "eval"]
        for name in ("cut", "run")
    )
    assert [(r["step"], r["mIoU"]) for r in cut] == [(r["step"], r["mIoU"]) for r in straight]


def test_order_is_the_same_for_any_micro_steps_and_after_a_stop_and_another_for_other_crops(
    tiny_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compared from the logs alone; `often` also tells the last step that two runs have in common."""

    def orders(name: str, *changes: str) -> dict[int, str]:
        common = [
            *tiny_run,
            "decoder_head.type=linear",
            "eval.max_val_samples=1",
            f"output_dir={tmp_path / name}",
        ]
        train([*common, *changes])
        records = read_metrics(tmp_path / name / "metrics.jsonl")
        return {record["step"]: record["order"] for record in records if record["kind"] == "train"}

    straight = orders("straight")
    assert list(straight) == [1, 2, 4, 6, 8]
    assert len(set(straight.values())) == 5
    often = orders("often", "bs=1", "global_batch=2", "log.interval=1")
    assert straight.items() <= often.items()
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        with pytest.raises(MemoryError):
            orders("cut", "checkpoint.interval=3")
    assert orders("cut", "resume_from=auto", "log.interval=1").items() <= often.items()
    flipped = orders("flipped", "transforms.train.flip_prob=1.0")
    assert not set(flipped.values()) & set(straight.values())


def test_killed_without_warning_repeats_the_lost_steps(
    tiny_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*tiny_run, "decoder_head.type=linear"]
    train(arguments)
    whole = final_weights(tmp_path / "run")
    again = [*arguments, f"output_dir={tmp_path / 'cut'}", "resume_from=auto", "checkpoint.interval=3"]
    real = loop.one_step

    def dies(session: Session, *given: object) -> None:
        if session.metrics.has("train", 4) and not session.metrics.has("eval", 8):
            raise MemoryError("killed")
        real(session, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "one_step", dies)
    with pytest.raises(MemoryError):
        train(again)
    monkeypatch.setattr(loop, "one_step", real)
    train(again)
    assert same(final_weights(tmp_path / "cut"), whole)


@pytest.mark.parametrize("multiplies_out", [True, False], ids=["masks", "features"])
def test_gradients_of_a_step_are_the_mean_of_its_micro_steps(
    tiny_run: list[str], tmp_path: Path, multiplies_out: bool
) -> None:
    """Of micro-steps whose costs come from masks, whatever those of the step come from."""
    config = load_config([*tiny_run, "bs=1", "global_batch=3", "optimizer.gradient_clip=inf"])
    parts = build_parts(config, ALONE)
    with open_loader(config, ALONE, parts.selection, 0) as loader:
        batches = list(islice(loader, 3))
    wanted = [torch.zeros_like(value) for value in parts.decoder.parameters()]
    for batch in batches:
        total = parts.objective(batch).total
        gradients = torch.autograd.grad(total, list(parts.decoder.parameters()))
        wanted = [kept + gradient / 3 for kept, gradient in zip(wanted, gradients, strict=True)]
    set_switch(parts.segmenter.decoder, "multiplies_out", multiplies_out)
    metrics = MetricsFile(tmp_path, ALONE, 0)
    with StopSignals() as stop:
        watch = Instruments(ALONE, Guard(config.guards, parts.decoder, parts.optimizer, tmp_path), math.inf)
        line = ProgressLine(0, 1, None)
        session = Session(config, ALONE, parts, tmp_path, metrics, line, watch, stop, None)
        loop.one_step(session, Lookahead(iter(batches), parts.objective.prepare, lambda: False), 1)
    for value, gradient in zip(parts.decoder.parameters(), wanted, strict=True):
        assert value.grad is not None
        torch.testing.assert_close(value.grad, gradient, rtol=1e-3, atol=1e-4)


def test_a_rehearsal_leaves_no_trace(tiny_run: list[str], tmp_path: Path) -> None:
    config = load_config(tiny_run)
    parts = build_parts(config, ALONE)
    before = {name: value.clone() for name, value in parts.decoder.state_dict().items()}
    with open_loader(config, ALONE, parts.selection, 0) as loader, StopSignals() as stop:
        watch = Instruments(ALONE, Guard(config.guards, parts.decoder, parts.optimizer, tmp_path), math.inf)
        line, metrics = ProgressLine(0, 1, None), MetricsFile(tmp_path, ALONE, 0)
        session = Session(config, ALONE, parts, tmp_path, metrics, line, watch, stop, None)
        batches = loop.rehearse(session, iter(loader))
        positions = [next(batches).positions for _ in range(3)]
    assert positions == [(0, 1), (2, 3), (4, 5)]
    assert all(torch.equal(value, before[name]) for name, value in parts.decoder.state_dict().items())
    assert all(value.grad is None for value in parts.decoder.parameters())


def test_a_finished_run_has_nothing_left_to_do(tiny_run: list[str], tmp_path: Path) -> None:
    train([*tiny_run, "decoder_head.type=linear"])
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    train([*tiny_run, "decoder_head.type=linear", "resume_from=auto"])
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let a run die, without warning, before the step after `step`."""
    real = loop.one_step

    def dies(session: Session, batches: object, number: int) -> None:
        if number > step:
            raise MemoryError("killed")
        real(session, batches, number)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "one_step", dies)


def steps_of(run: Path) -> list[str]:
    return [path.name for path in checkpoints_of(run, LAST)]


def test_a_branch_in_another_folder_dies_goes_on_and_ends_the_same(
    tiny_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = [*tiny_run, "decoder_head.type=linear", "checkpoint.interval=1", "checkpoint.keep_last=5"]
    train(common)
    old = final_weights(tmp_path / "run")
    four = tmp_path / "run" / "checkpoints" / "step-00000004"
    branch = [*common, "optimizer.lr=0.05", "checkpoint.keep_last=2"]
    cut, whole = (f"output_dir={tmp_path / name}" for name in ("cut", "whole"))
    with monkeypatch.context() as patch:
        stop_after(patch, 6)
        with pytest.raises(MemoryError):
            train([*branch, cut, f"resume_from={four}"])
    assert steps_of(tmp_path / "cut") == ["step-00000005", "step-00000006"]
    train([*branch, cut, "resume_from=auto"])
    train([*branch, whole, f"resume_from={four}"])
    assert same(final_weights(tmp_path / "cut"), final_weights(tmp_path / "whole"))
    assert not same(final_weights(tmp_path / "cut"), old)


def test_a_damaged_newest_checkpoint_takes_no_place_from_whole_ones(
    tiny_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = [*tiny_run, "decoder_head.type=linear", "checkpoint.interval=1", "checkpoint.keep_last=5"]
    train(common)
    run = tmp_path / "run"
    whole = final_weights(run)
    for step in (7, 8):
        (run / "checkpoints" / f"step-0000000{step}" / "optimizer.safetensors").write_bytes(b"torn")
    again = [*common, "checkpoint.keep_last=1", "resume_from=auto"]
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        with pytest.raises(MemoryError):
            train(again)
    assert steps_of(run) == ["step-00000007"]
    train(again)
    assert same(final_weights(run), whole)


def test_the_rehearsal_names_a_parameter_without_gradient(tiny_run: list[str], tmp_path: Path) -> None:
    config = load_config([*tiny_run, "decoder_head.type=linear"])
    parts = build_parts(config, ALONE)
    parts.segmenter.decoder.register_parameter("orphan", torch.nn.Parameter(torch.zeros(2)))
    with open_loader(config, ALONE, parts.selection, 0) as loader, StopSignals() as stop:
        watch = Instruments(
            ALONE, Guard(config.guards, parts.segmenter.decoder, parts.optimizer, tmp_path), math.inf
        )
        metrics, line = MetricsFile(tmp_path, ALONE, 0), ProgressLine(0, 1, None)
        session = Session(config, ALONE, parts, tmp_path, metrics, line, watch, stop, None)
        with pytest.raises(GuardError, match="receive no gradient: orphan"):
            loop.rehearse(session, iter(loader))


@pytest.mark.gpu
@pytest.mark.parametrize("head", ["m2f", "linear"])
def test_a_whole_step_of_the_trainer_waits_for_the_device_at_the_matchers_copy_only(
    tiny_run: list[str], head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's sync debug mode does not see that one: it waits for an event. Guard, average, accumulation,
    prefetching and meter take part; lines, checkpoints and evaluations lie outside the step.
    """
    steps: list[int] = []

    def strict(session: Session, batches: Iterator[RaggedBatch], step: int) -> None:
        steps.append(step)
        torch.cuda.set_sync_debug_mode("error" if step in (4, 5) else "default")  # the first ones compile
        try:
            one_step(session, batches, step)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr("maskshards.train.trainer.loop.one_step", strict)
    train(
        [
            *tiny_run, f"decoder_head.type={head}", "model_dtype=BFLOAT16", "global_batch=4", "ema.decay=0.9",
            "log.interval=8", "eval.eval_interval=8", "guards.non_finite=skip",
        ],
        torch.device("cuda"),
    )  # fmt: skip
    assert steps == list(range(1, 9))
