"""The trained model as one graph that needs none of this code: a torch.export program or an ONNX file.

In: RGB pixels (B, 3, H, W) float32 on the 0..255 scale; the normalisation is part of the graph, so it cannot
be forgotten. Out: semantic scores (B, C, H, W) float32, of which the largest wins. The batch may have any
size; H and W are fixed when the graph is made, because feature grids are laid out for them.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from maskshards.train.model.backbone.architectures import ModelError
from maskshards.train.model.heads.pixel_decoder import PixelDecoder
from maskshards.train.model.ops.deformable_attention import DeformableAttention
from maskshards.train.model.segmenter import Segmenter

INPUT, OUTPUT = "pixels", "scores"
OPSET = 20  # the first with GridSample in the form that torch uses
TOLERANCE = 1e-4  # mean difference of scores between a file and its model, as a share of their mean size
LARGEST_PROTOBUF = 1_900_000_000  # bytes of weights that go into an ONNX file itself
MAX_BATCH = 1024


class ExportError(ValueError):
    """The model cannot be exported as asked, or the file made does not compute what the model does."""


class InferenceGraph(nn.Module):
    """Normalisation, backbone, head and semantic scores in one module without branches on the input's values.

    `mean` and `std`: three numbers each, on the 0..255 scale.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, segmenter: Segmenter, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        images = (pixels - self.mean) / self.std
        answer = self.segmenter.decoder(images, self.segmenter.features(images))
        size = (pixels.shape[-2], pixels.shape[-1])
        if isinstance(answer, Tensor):
            return F.interpolate(answer, size=size, mode="bilinear", align_corners=False)
        last = answer[-1]
        masks = F.interpolate(last.mask_logits, size=size, mode="bilinear", align_corners=False).sigmoid()
        return torch.einsum("bqc,bqhw->bchw", last.class_logits.softmax(-1)[..., :-1], masks)


def export_program(graph: InferenceGraph, height: int, width: int) -> ExportedProgram:
    """The graph as a torch.export program for images of height x width px, on the CPU in float32.

    ExportError for a size that the model cannot take.
    """
    graph.eval()
    for module in graph.modules():
        if isinstance(module, DeformableAttention | PixelDecoder):
            module.fused = False  # a kernel of ours would not be known where the graph runs
    example = torch.zeros(2, 3, height, width)
    try:
        with torch.no_grad():
            return torch.export.export(
                graph,
                (example,),
                dynamic_shapes={INPUT: {0: Dim("batch", min=1, max=MAX_BATCH)}},
                strict=False,
            )
    except ModelError as error:
        raise ExportError(f"image_px={height}x{width}: {error}") from error


def save_program(program: ExportedProgram, path: Path) -> None:
    """Write a .pt2 file; read it with torch.export.load(path).module()."""
    torch.export.save(program, path)


def save_onnx(program: ExportedProgram, path: Path) -> None:
    """Write an ONNX file; beyond the 2 GB that one can hold, weights go to PATH.data beside it.

    ExportError without the packages onnx and onnxscript.
    """
    if find_spec("onnxscript") is None:
        raise ExportError(
            "format=onnx needs the packages onnx and onnxscript: pip install maskshards[export]"
        )
    converted = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=OPSET,
        input_names=[INPUT],
        output_names=[OUTPUT],
        optimize=False,  # takes minutes on graphs of this size, and runtimes optimise when they load
        verbose=False,
    )
    assert converted is not None
    size = sum(tensor.nbytes for tensor in program.state_dict.values())
    converted.save(path, external_data=size > LARGEST_PROTOBUF)


def check_file(graph: InferenceGraph, path: Path, pixels: Tensor) -> float:
    """Largest difference of scores between `graph` and the file at `path` (.pt2 or .onnx) on `pixels`.

    ExportError where they differ by more than TOLERANCE on average: single places may, since rounding can tip
    a place of an attention mask.
    """
    with torch.no_grad():
        expected = graph(pixels)
        if path.suffix == ".onnx":
            found = torch.from_numpy(run_onnx(path, pixels))
        else:
            found = torch.export.load(path).module()(pixels)
    difference = (found - expected).abs()
    if not difference.mean() <= TOLERANCE * expected.abs().mean():
        raise ExportError(
            f"{path.name} does not compute what the model does: scores differ by {difference.mean():.2g} on "
            f"average and {difference.max():.2g} at most, their mean size is {expected.abs().mean():.2g}"
        )
    return difference.max().item()


def run_onnx(path: Path, pixels: Tensor) -> np.ndarray:
    """Scores of an ONNX file in onnxruntime on the CPU; ExportError where onnxruntime is missing."""
    if find_spec("onnxruntime") is None:
        raise ExportError("checking an ONNX file needs onnxruntime: pip install maskshards[export]")
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run([OUTPUT], {INPUT: pixels.numpy()})[0]
