"""The export command: each format appears whole and works, faults are told, nothing half-written stays."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from maskshards.train.export import command as module
from maskshards.train.export.command import ExportError, main, parse, parse_size
from maskshards.train.export.graph import run_onnx
from tests.train.trained_run import save_run

NAMES = ["sky", "sea", "sand"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a linear head: model_final.pth with its facts."""
    return save_run(tmp_path_factory.mktemp("run"), names=NAMES)


def words(run: Path, output: Path, *more: str, format: str = "torch") -> list[str]:
    return [str(run), "--format", format, "--output", str(output), *more]


def test_a_program_is_written_with_its_description(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert main(words(run, output, "--size", "32x64")) == 0
    assert "32x64 px" in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    assert sorted(p.name for p in output.iterdir()) == ["model.json", "model.pt2"]
    facts = json.loads((output / "model.json").read_text())
    assert facts["input"]["pixels"] == ["batch", 3, 32, 64]
    assert facts["class_names"] == NAMES
    scores = torch.export.load(output / "model.pt2").module()(torch.rand(2, 3, 32, 64) * 255)
    assert scores.shape == (2, 3, 32, 64)


@pytest.mark.skipif(
    not all(find_spec(name) for name in ("onnxscript", "onnxruntime")),
    reason="onnxscript and onnxruntime are not installed",
)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_an_onnx_file_is_written_and_was_compared(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert main(words(run, output, "image_px=32", format="ONNX")) == 0
    assert sorted(p.name for p in output.iterdir()) == ["model.json", "model.onnx"]
    assert json.loads((output / "model.json").read_text())["largest_difference"] < 1e-4
    assert run_onnx(output / "model.onnx", torch.zeros(3, 3, 32, 32)).shape == (3, 3, 32, 32)


def test_without_a_size_the_window_of_the_evaluation_is_taken(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def note(_graph: object, size: tuple[int, int]) -> None:
        asked.append(size)
        raise ExportError("far enough")

    monkeypatch.setattr(module, "export_program", note)
    assert main(words(run, tmp_path / "out")) == 2
    assert asked == [(48, 48)]


def test_a_shared_folder_can_be_exported_again(run: Path, tmp_path: Path) -> None:
    assert main(words(run, tmp_path / "a", format="huggingface")) == 0
    assert main(words(tmp_path / "a", tmp_path / "b", format="huggingface")) == 0
    for name in ("config.json", "model.safetensors", "README.md"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_faults_are_told_in_one_block_and_leave_nothing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").touch()
    faults = [
        (words(run, tmp_path / "x", "--size", "big"), "--size big: expected a number of pixels"),
        (words(run, tmp_path / "x", "image_px=0"), "--size 0: expected"),
        (words(run, tmp_path / "x", format="coreml"), "expected one of torch, onnx, huggingface"),
        (words(run, full), "exists already"),
        (words(tmp_path / "no.pth", tmp_path / "x"), "no.pth"),
        ([str(run), "--format", "torch"], "--output is missing; usage: maskshards export RUN"),
        (["--format", "torch"], "RUN is missing"),
        (words(run, tmp_path / "x", "eval.usetta=true"), "eval.use_tta"),
    ]
    for argv, expected in faults:
        assert main(argv) == 2
        told = capsys.readouterr().err
        assert expected in told
        assert "Traceback" not in told
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full"]


def test_a_graph_that_fails_its_check_does_not_appear(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object) -> float:
        raise ExportError("scores differ")

    monkeypatch.setattr(module, "export_program", lambda *_: None)
    monkeypatch.setattr(module, "save_program", lambda _program, path: path.touch())
    monkeypatch.setattr(module, "check_file", fail)
    assert main(words(run, tmp_path / "out")) == 2
    assert list(tmp_path.iterdir()) == []


def test_sizes_are_read_as_height_by_width() -> None:
    assert parse_size("512") == (512, 512)
    assert parse_size("512x768") == (512, 768)
    assert parse_size("dynamic") is None
    with pytest.raises(ExportError, match="HEIGHTxWIDTH"):
        parse_size("big")


def test_other_keys_override_the_stored_configuration(run: Path, tmp_path: Path) -> None:
    request = parse(words(run, tmp_path / "out", "model.weights=random", "--classes", "names.txt"))
    assert request.overrides == ["model.weights=random"]
    assert (request.run, request.options.classes, request.options.recipe) == (str(run), "names.txt", None)


def test_the_older_words_mean_the_same(run: Path, tmp_path: Path) -> None:
    old = [f"checkpoint={run}", "format=torch", f"output_dir={tmp_path}", "image_px=64", "config=r.yaml"]
    request = parse([*old, "classes=names.txt"])
    assert (request.run, request.format, request.output, request.size) == (str(run), "torch", tmp_path, "64")
    assert (request.options.recipe, request.options.classes) == ("r.yaml", "names.txt")


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "maskshards export runs/ade20k --format onnx --size dynamic" in capsys.readouterr().out
