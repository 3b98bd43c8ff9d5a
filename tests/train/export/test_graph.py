"""Exported graphs compute what the model computes, for any batch, without this package's code."""

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch.export import ExportedProgram

from maskshards.train.export import graph as graph_export
from maskshards.train.export.graph import (
    ExportError,
    InferenceGraph,
    check_file,
    cut,
    export_program,
    padded,
    save_onnx,
    save_program,
    smallest_px,
)
from tests.train.model.tiny_segmenter import tiny_segmenter

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
ONNX = pytest.mark.skipif(
    not all(find_spec(name) for name in ("onnxscript", "onnxruntime")),
    reason="onnxscript and onnxruntime are not installed",
)
KINDS = [
    ("linear", "dinov3_tiny16", (32, 41)),
    pytest.param("m2f", "dinov3_tiny16", (32, 64), marks=pytest.mark.slow),
    pytest.param("m2f", "dinov2_tiny14", (224, 224), marks=pytest.mark.slow),
]


def graph_of(kind: str, name: str = "dinov3_tiny16") -> InferenceGraph:
    segmenter = tiny_segmenter(kind, name, num_classes=5, num_queries=10)
    return InferenceGraph(segmenter, MEAN, STD).eval()


@lru_cache
def exported(kind: str, name: str, size: tuple[int, int] | None) -> tuple[InferenceGraph, ExportedProgram]:
    """A graph and its program, made once for the tests that share it."""
    graph = graph_of(kind, name)
    return graph, export_program(graph, size)


def pixels_of(batch: int, size: tuple[int, int]) -> torch.Tensor:
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(1)) * 255


@pytest.mark.parametrize("kind", ["linear", "m2f"])
def test_the_graph_computes_the_scores_of_normalised_images(kind: str) -> None:
    graph, pixels = graph_of(kind), pixels_of(2, (64, 32))
    images = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    with torch.no_grad():
        torch.testing.assert_close(graph(pixels), graph.segmenter.scores(images))


@pytest.mark.parametrize(("kind", "name", "size"), KINDS[:2])
def test_a_program_equals_the_model_for_any_batch(
    kind: str, name: str, size: tuple[int, int], tmp_path: Path
) -> None:
    graph, program = exported(kind, name, size)
    path = tmp_path / "model.pt2"
    save_program(program, path)
    for batch in (1, 3):
        assert check_file(graph, path, pixels_of(batch, size)) < 1e-4
    other = graph_of(kind, name)
    with torch.no_grad():
        head = other.segmenter.decoder.segmentation_model[1]
        (head.conv if kind == "linear" else head.predictor.class_embed).weight.mul_(1.1)
    with pytest.raises(ExportError, match="does not compute what the model does"):
        check_file(other, path, pixels_of(1, size))


@ONNX
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(("kind", "name", "size"), KINDS)
def test_an_onnx_file_equals_the_model_in_onnxruntime(
    kind: str, name: str, size: tuple[int, int], tmp_path: Path
) -> None:
    import onnxruntime

    graph, program = exported(kind, name, size)
    path = tmp_path / "model.onnx"
    save_onnx(program, path)
    for batch in (1, 3):
        assert check_file(graph, path, pixels_of(batch, size)) < 1e-4
    assert onnxruntime.InferenceSession(path).get_inputs()[0].shape == ["batch", 3, *size]


@pytest.mark.parametrize("kind", ["linear", "m2f"])
def test_sides_that_the_model_cannot_take_are_padded_and_cut(kind: str) -> None:
    graph, pixels = graph_of(kind), pixels_of(2, (50, 33))
    images = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    with torch.no_grad():
        torch.testing.assert_close(graph(pixels), graph.segmenter.scores(images))


def test_places_looked_up_are_what_padding_and_slicing_give(monkeypatch: pytest.MonkeyPatch) -> None:
    images = pixels_of(2, (5, 7))
    plain = padded(images, (8, 8)), cut(images, (3, 2))
    monkeypatch.setattr(graph_export, "isinstance", lambda *_: False, raising=False)  # as for symbols
    assert torch.equal(padded(images, (8, 8)), plain[0])
    assert torch.equal(cut(images, (3, 2)), plain[1])


@pytest.mark.slow
@ONNX
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["linear", "m2f"])
def test_one_file_for_images_of_any_size(kind: str, tmp_path: Path) -> None:
    import onnxruntime

    graph, program = exported(kind, "dinov3_tiny16", None)
    path = tmp_path / "model.onnx"
    save_onnx(program, path)
    least = smallest_px(graph)
    for batch, size in (
        (1, (least, least)),
        (3, (2 * least, 3 * least + 5)),
        (2, (5 * least + 1, least + 30)),
    ):
        assert check_file(graph, path, pixels_of(batch, size)) < 1e-4
        found = program.module()(pixels_of(batch, size))
        with torch.no_grad():
            torch.testing.assert_close(found, graph(pixels_of(batch, size)), atol=1e-4, rtol=1e-3)
    session = onnxruntime.InferenceSession(path)
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    assert session.get_outputs()[0].shape == ["batch", 5, "height", "width"]


def test_learned_positions_have_one_size() -> None:
    with pytest.raises(ExportError, match=r"--size dynamic: dinov2_tiny14 .* such as --size 518"):
        export_program(graph_of("linear", "dinov2_tiny14"), None)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_export, "find_spec", lambda name: None)
    with pytest.raises(ExportError, match="onnx, onnxscript, onnxruntime: pip install"):
        graph_export.check_packages()
