"""`maskshards export RUN --format torch|onnx|huggingface --output OUT`: give a trained model away.

The file of a graph is compared with the model before it appears. OUT appears whole or not at all.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from maskshards.shards.commands.one_line_parser import OneLineParser
from maskshards.shards.errors import error_text
from maskshards.train.export.graph import (
    DYNAMIC,
    INPUT,
    OUTPUT,
    ExportError,
    InferenceGraph,
    check_file,
    check_packages,
    export_program,
    save_onnx,
    save_program,
    smallest_px,
)
from maskshards.train.model.backbone.architectures import FP8
from maskshards.train.prediction.arguments import add_model_options, read_names, sort_words
from maskshards.train.predictor import Predictor, load_model

FORMATS = {"torch": "model.pt2", "onnx": "model.onnx", "huggingface": ""}
# Words of the form key=value that stood for options before there were any.
OLD_WORDS = {
    "checkpoint": "run", "format": "format", "output_dir": "output", "image_px": "size", "config": "recipe",
    "classes": "classes",
}  # fmt: skip
EPILOG = """written:
  torch        OUT/model.pt2, a torch.export program of normalisation, backbone, head and scores
  onnx         OUT/model.onnx, the same graph for onnxruntime and others, its axes batch, height and width
  huggingface  OUT/config.json, model.safetensors and README.md: the head alone, to be shared and loaded back
  with the first two OUT/model.json: what goes in and comes out, the names of the classes

A size that the model cannot take is padded inside the graph, and the scores cut back.

example:
  maskshards export runs/ade20k --format onnx --size dynamic --output exported

`checkpoint=RUN format=onnx image_px=512 output_dir=OUT` mean the same. Any key of the run's configuration can
be overridden: model.weights=/elsewhere."""


@dataclass(frozen=True)
class Request:
    """A checked command line."""

    run: str
    format: str
    output: Path
    size: str | None  # of its images; None: the evaluation's window
    overrides: list[str]
    options: argparse.Namespace


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit status (2 for a fault of the user's, told in one block on stderr)."""
    try:
        line = export(parse(argv))
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error_text(error)}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    sys.stdout.write(f"{line}\n")
    return 0


def parser() -> argparse.ArgumentParser:
    """Options and their help."""
    parser = OneLineParser(
        prog="maskshards export",
        usage="maskshards export RUN --format FORMAT --output OUT [options] [key=value ...]",
        description="Give a trained model away, as a graph or as a folder.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("run", nargs="?", metavar="RUN", help="a run folder, checkpoint, model_final.pth, exported folder or "
        "hub repository (owner/name)")  # fmt: skip
    add("--format", "-f", metavar="FORMAT", help="torch, onnx or huggingface")
    add("--output", "-o", metavar="OUT", help="a new or an empty folder")
    add("--size", metavar="PX", help="of the images of a graph: 512, 512x768 (height x width) or dynamic: "
        "any; else the evaluation's window")  # fmt: skip
    add_model_options(parser)
    return parser


def parse(argv: Sequence[str]) -> Request:
    """ExportError for what is missing or cannot be; argparse ends the process for unknown options."""
    words, given, overrides = sort_words(argv, OLD_WORDS)
    options = parser().parse_intermixed_args(words)
    for name, values in given.items():
        setattr(options, name, values[-1])
    for name, what in (("run", "RUN"), ("format", "--format"), ("output", "--output")):
        if not getattr(options, name):
            raise ExportError(f"{what} is missing; {parser().format_usage().strip()} (--help tells more)")
    kind = options.format.lower()
    if kind not in FORMATS:
        raise ExportError(f"--format {options.format}: expected one of {', '.join(FORMATS)}")
    if kind == "onnx":
        check_packages()  # before the minutes that an export takes
    output = Path(options.output).expanduser()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ExportError(f"--output {output} exists already; give a new or an empty folder")
    if options.size is not None:
        parse_size(options.size)
    return Request(options.run, kind, output, options.size, overrides, options)


def parse_size(text: str) -> tuple[int, int] | None:
    """`512` or `512x768` (height x width) as two numbers of pixels; None for `dynamic`."""
    if text.lower() == DYNAMIC:
        return None
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    sides = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if min(sides) < 1:
        raise ExportError(f"--size {text}: expected a number of pixels, HEIGHTxWIDTH or {DYNAMIC}")
    return sides


def export(request: Request) -> str:
    """Carry the command out; returns the line that says what was made."""
    options = request.options
    predictor = load_model(
        request.run,
        device="cpu",
        weights=options.weights,
        recipe=options.recipe,
        class_names=read_names(options.classes),
        overrides=request.overrides,
    )
    hidden = request.output.with_name(f".{request.output.name}.part")
    shutil.rmtree(hidden, ignore_errors=True)
    hidden.mkdir(parents=True)
    try:
        if request.format == "huggingface":
            line = share(request, predictor, hidden)
        else:
            line = write_graph(request, predictor, hidden)
        if request.output.exists():
            request.output.rmdir()
        hidden.rename(request.output)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    return line


def share(request: Request, predictor: Predictor, folder: Path) -> str:
    """The head as a folder to be shared."""
    predictor.save_pretrained(folder)
    return f"{request.output}: config.json, model.safetensors, README.md"


def write_graph(request: Request, predictor: Predictor, folder: Path) -> str:
    """The inference graph as one file, compared with the model, and a description of it in model.json."""
    settings = predictor.settings
    size = parse_size(request.size or str(settings.crop_px))
    if predictor.segmenter.backbone.precision == FP8:
        raise ExportError(
            "a backbone with products in 8 bits is not exported as a graph: add "
            "model.backbone_precision=full, and read docs/models.md on what that changes"
        )
    sys.stderr.write("making the graph and comparing it with the model; this takes a minute or more\n")
    graph = InferenceGraph(predictor.segmenter, settings.mean, settings.std)
    program = export_program(graph, size)
    path = folder / FORMATS[request.format]
    (save_onnx if request.format == "onnx" else save_program)(program, path)
    least = smallest_px(graph)
    checked = [size] if size else [(settings.crop_px, settings.crop_px), (least, 2 * least + 1)]
    largest = max(check_file(graph, path, noise(*sides)) for sides in checked)
    height, width = size or ("height", "width")
    facts = {
        "input": {INPUT: ["batch", 3, height, width], "values": "RGB, float32, 0..255"},
        "output": {OUTPUT: ["batch", predictor.segmenter.num_classes, height, width]},
        "smallest_px": least if size is None else None,
        "class_names": list(predictor.class_names),
        "largest_difference": largest,
    }
    (folder / "model.json").write_text(json.dumps(facts, indent=1))
    told = f"{height}x{width} px" if size else f"any size from {least} px a side on"
    return f"{request.output / path.name}: {told}; scores within {largest:.1e} of the model's"


def noise(height: int, width: int) -> Tensor:
    """Pixels (1, 3, height, width) to compare on."""
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0)) * 255


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
