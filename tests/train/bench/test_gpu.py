"""The command for a GPU, on a CPU: every part runs on a tiny model, and faults are told before any work."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from maskshards.train.bench.gpu import main, parser, parts_of
from maskshards.train.bench.journal import ABSENT, DONE
from maskshards.train.bench.parts.setting import Setting
from maskshards.train.model.heads import pixel_decoder, query_decoder

FEW_TESTS = "tests/train/losses/test_host_copies.py"
NEEDS_CUDA = {"nvJPEG", "width 32, CUDA graphs", "value gradient", "width 64, sorted gradients"}


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    yield
    torch.compiler.reset()


def results(out: Path) -> dict[str, dict[str, object]]:
    return {line["part"]: line for line in map(json.loads, (out / "gpu.jsonl").read_text().splitlines())}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo's own
@pytest.mark.parametrize("shallow", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_dry_run_on_the_cpu_goes_through_all_parts(
    shallow: bool,
    tmp_path: Path,
    tiny_shards: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With one layer a decoder: the other eight and five add nothing to the parts but time."""
    if shallow:
        for decoder in (pixel_decoder, query_decoder):
            monkeypatch.setattr(decoder, "NUM_LAYERS", 1)
    words = ["--device", "cpu", "--budget-s", "3000", "--shards", str(tiny_shards), "--tests", FEW_TESTS]
    words += ["--out", str(tmp_path)]
    setting = Setting(torch.device("cpu"), tmp_path, None, True)  # type: ignore[arg-type]
    names = [part.name for part in parts_of(setting, parser().parse_args(words))]
    assert main([*words, "decoder_head.num_classes=3"]) == 0
    printed = capsys.readouterr().out.splitlines()
    found = results(tmp_path)
    assert list(found) == names
    not_done = {name: line["reason"] for name, line in found.items() if line["status"] != DONE}
    assert set(not_done) == NEEDS_CUDA
    assert all(found[name]["status"] == ABSENT for name in NEEDS_CUDA)
    assert found["CUDA against CPU"]["figures"]["breaches"] == []  # type: ignore[index]
    assert found["tests"]["figures"]["exit"] == 0  # type: ignore[index]
    assert found["width 64"]["figures"]["images_per_s"] > 0  # type: ignore[index]
    assert len(found["learning"]["figures"]["curve"]) == 3  # type: ignore[index]
    assert "aten::" in (tmp_path / "profile-32.txt").read_text()
    assert len(printed) <= 60
    assert printed[0].startswith("| step | images/s |")
    assert (tmp_path / "gpu.md").read_text().startswith(printed[0])


def test_parts_can_be_chosen_and_those_without_time_are_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--device", "cpu", "--out", str(tmp_path), "--only", "crop", "--only", "machine"]) == 0
    assert list(results(tmp_path)) == ["machine", "crop"]
    assert "copy_gb_per_s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--budget-s", "5"], "expected more than 10 seconds"),
        (["--device", "gpu"], "expected cpu"),
        (["--device", "cuda:99"], "CUDA devices"),
        (["--only", "everything"], "no such part; known are machine, "),
        (["bs=x"], "bs"),
        (["nonsense"], "unknown argument 'nonsense'"),
    ],
)
def test_faults_are_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--device", "cpu", "--out", str(tmp_path / "out"), *words]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert not captured.out
