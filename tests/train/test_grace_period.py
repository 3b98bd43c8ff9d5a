"""SIGTERM and, soon after, SIGKILL, as Slurm and Kubernetes end a job: the end must not differ."""

from pathlib import Path

import pytest
import torch

from maskshards.train.checkpoint.checkpoint import read_checkpoint, read_state
from maskshards.train.checkpoint.run_files import LAST, checkpoints_of
from maskshards.train.tracking.metrics_log import read_metrics
from tests.train.launch import ended, ranks_of

# `maskshards train` whose first rank is told to end at a place, and is killed soon after: at once, or in the
# middle of the file that it writes then.
KILLED_SOON = """
import os, signal, sys
import maskshards.train.checkpoint.checkpoint as checkpoint
import maskshards.train.evaluation.evaluate as evaluation
from maskshards.train.trainer import loop, validate
from maskshards.train.__main__ import main
owner, name, nth = {
    "step": (loop, "one_step", 3), "save": (checkpoint, "write_through", 2),
    "score": (evaluation, "_score_batch", 1), "best": (validate, "save_best", 1),
    "final": (loop, "save_final", 1),
}[sys.argv[1]]
files, whole, write, calls, told = int(sys.argv[2]), getattr(owner, name), checkpoint.write_through, [], []

def note(*words, **named):
    calls.append(1)
    if len(calls) == nth:
        told.append(1)
        os.kill(os.getpid(), signal.SIGTERM)
        if not files:
            os.kill(os.getpid(), signal.SIGKILL)
    return whole(*words, **named)

def half(path, data, *wrote):
    told.append(1) if told else None
    if len(told) > files:
        write(path, data[: len(data) // 2], *wrote)
        os.kill(os.getpid(), signal.SIGKILL)
    return write(path, data, *wrote)

if os.environ["SLURM_PROCID"] == "0":
    if owner is not checkpoint:
        checkpoint.write_through = half
        setattr(owner, name, note)
    else:
        checkpoint.write_through = lambda *given: half(*given) if told else note(*given)
sys.exit(main(sys.argv[3:]))
"""


def files_of(run: Path) -> set[str]:
    return {str(path.relative_to(run)) for path in run.rglob("*")}


def lines_of(run: Path) -> list[tuple[str, int]]:
    records = read_metrics(run / "metrics.jsonl")
    return sorted((record["kind"], record["step"]) for record in records if record["kind"] != "phases")


@pytest.mark.slow
def test_a_job_that_is_told_to_end_and_killed_soon_ends_with_the_same_weights(
    tiny_run: list[str], tmp_path: Path
) -> None:
    shared = [
        *tiny_run, "decoder_head.type=linear", "bs=1", "n_gpus=2", "scheduler.total_iter=6", "log.interval=1",
        "eval.eval_interval=2", "ema.decay=0.9", "log.tensorboard=False", "resume_from=auto",
    ]  # fmt: skip
    straight = tmp_path / "run"
    with ranks_of(["-m", "train", *shared], launcher="srun") as members:
        assert ended(members)[0] == [0, 0]
    expected = read_checkpoint(straight / "model_final.pth").weights
    # In a step, and halfway into each file of the checkpoint that follows; while a checkpoint, the best
    # weights and the final ones are written; in an evaluation.
    places = [("step", 0), ("step", 1), ("step", 2), ("step", 4), ("save", 1), ("best", 1), ("final", 1)]
    for place, files in [*places, ("score", 0)]:
        run = tmp_path / f"{place}{files}"
        again = [*shared, f"output_dir={run}"]
        with ranks_of(["-c", KILLED_SOON, place, str(files), *again], launcher="srun") as members:
            assert members[0].wait() == -9, (place, members[0].stderr.read())
        for path in checkpoints_of(run, LAST):  # whatever shows under its name is whole
            assert read_checkpoint(path).weights.keys() == expected.keys()
            assert read_state(path / "state.json").step > 0
        with ranks_of(["-m", "train", *again], launcher="srun") as members:
            statuses, words = ended(members)
        assert statuses == [0, 0], (place, words)
        weights = read_checkpoint(run / "model_final.pth").weights
        assert [key for key in expected if not torch.equal(weights[key], expected[key])] == [], place
        assert files_of(run) == files_of(straight), place
        assert lines_of(run) == lines_of(straight), place
