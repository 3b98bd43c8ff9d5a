"""Give a trained model away: `maskshards export checkpoint=RUN format=torch|onnx|huggingface
output_dir=OUT`.

`checkpoint` is a run folder, a checkpoint folder, model_final.pth or a folder made by format=huggingface; its
stored configuration says which model it is, and any key of it can be overridden
(`model.weights=/another/place`).

* torch: OUT/model.pt2, a torch.export program of backbone, head and semantic scores.
* onnx: OUT/model.onnx, the same graph for onnxruntime and others.
* huggingface: OUT/config.json, model.safetensors and README.md: the head alone, to be shared and loaded back.

The first two are made for images of `image_px` (one number, or HEIGHTxWIDTH; the window of the evaluation if
not given) and compared with the model before they appear. OUT appears whole or not at all.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from maskshards.train.export.graph import (
    INPUT,
    OUTPUT,
    ExportError,
    InferenceGraph,
    check_file,
    export_program,
    save_onnx,
    save_program,
)
from maskshards.train.predictor import Predictor, load_model

FORMATS = {"torch": "model.pt2", "onnx": "model.onnx", "huggingface": ""}
OWN_KEYS = ("checkpoint", "format", "output_dir", "image_px", "config", "classes")
EXAMPLE = "maskshards export checkpoint=runs/ade20k format=onnx output_dir=exported"
USAGE = "maskshards export checkpoint=RUN format=torch|onnx|huggingface output_dir=FOLDER [key=value ...]"


@dataclass(frozen=True)
class Request:
    """A checked command line."""

    checkpoint: str
    format: str
    output: Path
    size: tuple[int, int] | None  # height, width, px; None: the evaluation's window
    recipe: str | None
    classes: str | None  # a file
    overrides: list[str]


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit status (2 for a fault of the user's, told in one block on stderr)."""
    if argv and argv[0] in ("-h", "--help"):
        sys.stdout.write(f"usage: {USAGE}\n\n{__doc__}\nexample: {EXAMPLE}\n")
        return 0
    try:
        line = export(parse(argv))
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    sys.stdout.write(f"{line}\n")
    return 0


def parse(argv: Sequence[str]) -> Request:
    """ExportError for what is missing or cannot be."""
    given: dict[str, str] = {}
    overrides: list[str] = []
    for argument in argv:
        key, equals, value = argument.partition("=")
        if not equals:
            raise ExportError(f"argument {argument!r} is not of the form key=value; usage: {USAGE}")
        if key in OWN_KEYS:
            given[key] = value
        else:
            overrides.append(argument)
    missing = [key for key in ("checkpoint", "format", "output_dir") if not given.get(key)]
    if missing:
        raise ExportError(f"{missing[0]}= is missing; usage: {USAGE}")
    if given["format"] not in FORMATS:
        raise ExportError(f"format={given['format']}: expected one of {', '.join(FORMATS)}")
    output = Path(given["output_dir"])
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ExportError(f"output_dir={output} exists already; give a new or an empty folder")
    return Request(
        given["checkpoint"],
        given["format"],
        output,
        parse_size(given["image_px"]) if "image_px" in given else None,
        given.get("config"),
        given.get("classes"),
        overrides,
    )


def parse_size(text: str) -> tuple[int, int]:
    """`512` or `512x768` (height x width) as two numbers of pixels."""
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if not match:
        raise ExportError(f"image_px={text}: expected one number of pixels, or HEIGHTxWIDTH")
    return int(match[1]), int(match[2] or match[1])


def export(request: Request) -> str:
    """Carry the command out; returns the line that says what was made."""
    names = request.classes and Path(request.classes).read_text(encoding="utf-8").splitlines()
    predictor = load_model(
        request.checkpoint,
        device="cpu",
        recipe=request.recipe,
        class_names=[name.strip() for name in names if name.strip()] if names else None,
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
    height, width = request.size or (settings.crop_px, settings.crop_px)
    graph = InferenceGraph(predictor.segmenter, settings.mean, settings.std)
    program = export_program(graph, height, width)
    path = folder / FORMATS[request.format]
    (save_onnx if request.format == "onnx" else save_program)(program, path)
    pixels = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0)) * 255
    largest = check_file(graph, path, pixels)
    facts = {
        "input": {INPUT: ["batch", 3, height, width], "values": "RGB, float32, 0..255"},
        "output": {OUTPUT: ["batch", predictor.segmenter.num_classes, height, width]},
        "class_names": list(predictor.class_names),
        "largest_difference": largest,
    }
    (folder / "model.json").write_text(json.dumps(facts, indent=1))
    return f"{request.output / path.name}: {height}x{width} px; scores within {largest:.1e} of the model's"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
