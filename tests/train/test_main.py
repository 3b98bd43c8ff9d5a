"""The command line, as a process: exit status, one block of error, what is left behind, one rank and two."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from maskshards.train.__main__ import evaluate_main, main
from maskshards.train.checkpoint.checkpoint import read_checkpoint
from maskshards.train.tracking.metrics_log import read_metrics
from tests.forked import ForkedPython
from tests.train.launch import ranks_of


def test_user_faults_are_one_block_without_traceback(
    tiny_run: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([*tiny_run, "optimiser.lr=1"]) == 2
    assert main([*tiny_run, f"datasets.root={tmp_path}"]) == 2
    err = capsys.readouterr().err
    assert "did you mean 'optimizer.lr'" in err
    assert "Traceback" not in err
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_without_arguments_it_says_how_to_use_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert main(["--help"]) == 0
    out, err = capsys.readouterr()
    assert err.startswith("usage: maskshards train config=RECIPE")
    assert out.startswith(err)
    assert "exit status" in err
    assert "m2f_train.num_points" in out


def test_a_typo_is_answered_before_anything_heavy_is_loaded() -> None:
    program = (
        "import sys; from maskshards.train.__main__ import evaluate_main, main\n"
        "status = main(['config=demo', 'optimiser.lr=1'])\n"
        "sys.exit(99 if {'torch', 'transformers', 'numpy'} & set(sys.modules) else status)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: the command line: unknown key 'optimiser.lr'; did you mean")
    assert done.stderr.count("\n") == 1


def test_ctrl_c_before_the_run_begins_is_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(argv: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("maskshards.train.config.load.load_config", interrupted)
    assert main(["config=demo"]) == 130
    assert capsys.readouterr() == ("", "")


def test_evaluate_wants_weights(capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate_main(["config=demo"]) == 2
    assert "say load_from=CHECKPOINT" in capsys.readouterr().err


@pytest.mark.parametrize("head", ["m2f", "linear"])
def test_two_ranks_train_together_and_only_the_first_writes(
    tiny_run: list[str], tmp_path: Path, head: str
) -> None:
    arguments = [
        *tiny_run, f"decoder_head.type={head}", "bs=1", "n_gpus=2", "scheduler.total_iter=4",
        "log.interval=1",
    ]  # fmt: skip
    with ranks_of(["-m", "train", *arguments]) as members:
        (told, _), (nothing, _) = outputs = [member.communicate(900) for member in members]
    assert [member.returncode for member in members] == [0, 0], outputs
    assert told.startswith("mIoU ")
    assert nothing == ""
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [record["step"] for record in records if record["kind"] == "train"] == [1, 2, 3, 4]
    assert [record["step"] for record in records if record["kind"] == "phases"] == [2, 3, 4]
    assert records[-1]["num_images"] == 4
    # One process with both images a step: batch norms saw the same, so only roundings differ. The linear head
    # is smooth in them. The other one chooses (mask bits, matches, points), and a rounding may tip a choice:
    # its first step shows the normalisers, which would be off by a factor; float64 tests show the rest.
    assert main([*arguments, "bs=2", "n_gpus=1", f"output_dir={tmp_path / 'alone'}"]) == 0
    alone = read_metrics(tmp_path / "alone" / "metrics.jsonl")
    steps, tolerance = (4, 1e-3) if head == "linear" else (1, 0.05)
    for figure in ("loss", "grad_norm"):
        ours, theirs = ([r[figure] for r in both if r["kind"] == "train"] for both in (records, alone))
        assert ours[:steps] == pytest.approx(theirs[:steps], rel=tolerance)


def test_a_terminated_run_saves_leaves_nothing_half_written_and_continues(
    tiny_run: list[str], tmp_path: Path
) -> None:
    arguments = [*tiny_run, "scheduler.total_iter=400", "eval.eval_interval=400", "log.interval=1"]
    with ForkedPython(["-m", "train", *arguments], env={**os.environ, "OMP_NUM_THREADS": "1"}) as member:
        next(line for line in member.stderr if "step 2/" in line)
        member.send_signal(signal.SIGTERM)
        _, err = member.communicate(900)
    assert member.returncode == 128 + signal.SIGTERM
    assert "resume_from=auto continues" in err
    run = tmp_path / "run"
    assert [path for path in run.rglob("*") if path.name.startswith(".")] == []
    (saved,) = (run / "checkpoints").iterdir()
    found = read_checkpoint(saved)
    assert found.state is not None
    assert all(torch.isfinite(value).all() for value in found.weights.values())
    stop = found.state.step + 1
    assert (
        main([*tiny_run, "eval.eval_interval=400", f"scheduler.total_iter={stop}", "resume_from=auto"]) == 0
    )
    assert read_metrics(run / "metrics.jsonl")[-1]["step"] == stop


@pytest.mark.gpu
def test_the_full_width_trains_ten_steps_on_cuda(tiny_run: list[str], tmp_path: Path) -> None:
    arguments = [
        *tiny_run, "model.dino_hub=dinov3_vitl16", "model_dtype=BFLOAT16", "scheduler.total_iter=10",
        "eval.eval_interval=10", "eval.max_val_samples=10", "bs=1", "decoder_head.hidden_dim=2048",
        "decoder_head.ffn_dim=4096", "decoder_head.num_queries=100", "m2f_train.num_points=12544",
        "transforms.train.img_size=512", "transforms.train.crop_size=[512,512]",
        "transforms.eval.img_size=896", "eval.crop_size=896", "eval.stride=596",
    ]  # fmt: skip
    assert main(arguments) == 0
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert all(record["loss"] is not None for record in records if record["kind"] == "train")
    assert records[-1]["num_images"] == 4
