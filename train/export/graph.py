"""The trained model as one graph that needs none of this code: a torch.export program or an ONNX file.

In: RGB pixels (B, 3, H, W) float32 on the 0..255 scale; the normalisation is part of the graph, so it cannot
be forgotten. Out: semantic scores (B, C, H, W) float32, of which the largest wins. The batch may have any
size, and so may H and W unless they are fixed when the graph is made. Sides that the model cannot take are
padded, as `Segmenter.scores` pads them, and the scores cut back.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from maskshards.train.model.backbone.architectures import DINOV3
from maskshards.train.model.heads.prediction import Prediction
from maskshards.train.model.ops.fused import set_fused
from maskshards.train.model.segmenter import Segmenter

INPUT, OUTPUT = "pixels", "scores"
OPSET = 20  # the first with GridSample in the form that torch uses
TOLERANCE = 1e-4  # mean difference of scores between a file and its model, as a share of their mean size
LARGEST_PROTOBUF = 1_900_000_000  # bytes of weights that go into an ONNX file itself
MAX_BATCH, MAX_PX = 1024, 1 << 14
AXES = ("batch", "channel", "height", "width")
DYNAMIC = "dynamic"  # the size of a graph for any


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
        height, width, multiple = pixels.shape[-2], pixels.shape[-1], self.segmenter.size_multiple
        # Upwards without a negative number: ONNX divides towards zero.
        rows, columns = ((side + multiple - 1) // multiple for side in (height, width))
        full = (rows * multiple, columns * multiple)
        images = padded((pixels - self.mean) / self.std, full)
        answer = self.segmenter.decoder(images, self.segmenter.features(images))
        return cut(scores_of(answer, full), (height, width))


def scores_of(answer: Tensor | list[Prediction], size: tuple[int, int]) -> Tensor:
    """Semantic scores (B, C, *size) of a decoder's answer, as `Decoder.scores` gives them.

    Without its loop over the images, which would tie the graph to one number of them.
    """
    if isinstance(answer, Tensor):
        return F.interpolate(answer, size=size, mode="bilinear", align_corners=False)
    last = answer[-1]
    masks = F.interpolate(last.mask_logits, size=size, mode="bilinear", align_corners=False).sigmoid()
    return torch.einsum("bqc,bqhw->bchw", last.class_logits.softmax(-1)[..., :-1], masks)


def padded(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (B, C, h, w) with zeros at the right and the bottom, (B, C, *size).

    While a graph for any size is made the numbers are symbols, and padding by a difference of them would ask
    questions about it that not every size answers alike: places are looked up instead.
    """
    height, width = images.shape[-2], images.shape[-1]
    if isinstance(height, int) and isinstance(width, int):
        return F.pad(images, (0, size[1] - width, 0, size[0] - height))
    rows, columns = (torch.arange(side, device=images.device) for side in size)
    inside = (rows < height)[:, None] & (columns < width)
    places = images.index_select(2, rows.clamp(max=height - 1))
    return places.index_select(3, columns.clamp(max=width - 1)) * inside.to(images.dtype)


def cut(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """The first places of scores (B, C, h, w), (B, C, *size)."""
    height, width = size
    if isinstance(height, int) and isinstance(width, int):
        return scores[..., :height, :width]
    rows, columns = (torch.arange(side, device=scores.device) for side in size)
    return scores.index_select(2, rows).index_select(3, columns)


def export_program(graph: InferenceGraph, size: tuple[int, int] | None) -> ExportedProgram:
    """The graph as a torch.export program on the CPU in float32.

    For images of one (height, width) px, or of any size from `smallest_px` on. ExportError for any size of a
    backbone that cannot.
    """
    graph.eval()
    set_fused(graph, False)  # a kernel of ours would not be known where the graph runs
    arch = graph.segmenter.backbone.arch
    if size is None and arch.family != DINOV3:
        raise ExportError(
            f"--size {DYNAMIC}: {arch.name} resizes its learned positions by a factor that a graph holds "
            f"as a number; give the size of the images, such as --size {37 * arch.patch_px} or HEIGHTxWIDTH"
        )
    least = smallest_px(graph)
    axes = {0: Dim("batch", min=1, max=MAX_BATCH)}
    if size is None:
        axes |= {2: Dim("height", min=least, max=MAX_PX), 3: Dim("width", min=least, max=MAX_PX)}
    # Two odd sides that no other number in the graph equals, or the two would be taken for one.
    example = torch.zeros(2, 3, *(size or (4 * least + 1, 6 * least + 5)))
    with torch.no_grad():
        return torch.export.export(
            graph,
            (example,),
            dynamic_shapes={INPUT: axes},
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )


def smallest_px(graph: InferenceGraph) -> int:
    """Sides, px, from which on a graph for any size is sound.

    Two places at the coarsest level, since one place is a number and no axis.
    """
    return graph.segmenter.size_multiple + 1


def save_program(program: ExportedProgram, path: Path) -> None:
    """Write a .pt2 file; read it with torch.export.load(path).module()."""
    torch.export.save(program, path)


def axes_of(program: ExportedProgram) -> dict[int, str]:
    """The names of the axes of `pixels` that may have any length."""
    (pixels,) = (node for node in program.graph.nodes if node.op == "placeholder" and node.name == INPUT)
    return {k: AXES[k] for k, side in enumerate(pixels.meta["val"].shape) if not isinstance(side, int)}


def check_packages() -> None:
    """ExportError unless there is what writing and checking an ONNX file needs."""
    lacking = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if lacking:
        raise ExportError(f"--format onnx needs {', '.join(lacking)}: pip install 'maskshards[export]'")


def save_onnx(program: ExportedProgram, path: Path) -> None:
    """Write an ONNX file; beyond the 2 GB that one can hold, weights go to PATH.data beside it."""
    converted = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=OPSET,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes={INPUT: axes_of(program)},
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
    """Scores of an ONNX file in onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run([OUTPUT], {INPUT: pixels.numpy()})[0]
