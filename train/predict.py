"""`maskshards predict RUN IMAGES... --output OUT`: label maps and pictures for images.

Nothing heavy is imported before the words are checked and the images found.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from maskshards.shards.commands.one_line_parser import OneLineParser
from maskshards.shards.errors import counted, error_text, printable
from maskshards.train.prediction.arguments import add_model_options, read_names, sort_words
from maskshards.train.prediction.find_images import Found, find_images
from maskshards.train.prediction.image_files import PredictError

if TYPE_CHECKING:
    from maskshards.train.prediction.label_files import Report
    from maskshards.train.predictor import Predictor

# Words of the form key=value that stood for options before there were any.
OLD_WORDS = {
    "checkpoint": "run", "inputs": "inputs", "output_dir": "output", "config": "recipe", "classes": "classes",
    "device": "device",
}  # fmt: skip
SHOWN = 20
EPILOG = """written for each image NAME, at its own size:
  OUT/labels/NAME.png      class ids, 8 bits a pixel (16 beyond 256 classes)
  OUT/overlays/NAME.jpg    the classes in colours over the image, with a legend
  OUT/scores/NAME.npy      with --scores: (classes, height, width) probabilities, float16
  OUT/classes.csv          id, name, colour and, where known, the source's label value of every class

example:
  maskshards predict runs/ade20k photos/ scan.tif --output pictures --ids source

`checkpoint=RUN inputs=PLACE output_dir=OUT` mean the same. Any key of the run's configuration can be
overridden: eval.use_tta=true, model.weights=/elsewhere. Subfolders are kept; where only the ending tells two
files apart it stays in the name.

exit status: 0 all images labelled; 1 some were not, listed at the end; 2 none, or the command cannot be
carried out as given"""


@dataclass(frozen=True)
class Request:
    """A checked command line."""

    run: str
    inputs: tuple[str, ...]
    output: Path
    overrides: tuple[str, ...]
    options: argparse.Namespace


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit status, and tells a fault of the user's in one block on stderr."""
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        request = parse(argv)
        found = find_images(request.inputs)
        return predict(request, found)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error_text(error)}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; what is written is whole\n")
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


def parser() -> argparse.ArgumentParser:
    """Options and their help."""
    parser = OneLineParser(
        prog="maskshards predict",
        usage="maskshards predict RUN IMAGES... --output OUT [options] [key=value ...]",
        description="Label images with a trained model.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("words", nargs="*", metavar="RUN IMAGES...", help="a run folder, checkpoint, model_final.pth, "
        "exported folder or hub repository (owner/name); then image files, folders or patterns")  # fmt: skip
    add("--output", "-o", metavar="OUT", help="folder of the results, made if missing")
    add("--ids", choices=("model", "source"), default="model", help="what label maps hold: the model's class "
        "ids from 0, or the original label values of the data set's own files (with the zero-label rule "
        "1..K, as ADE20K's server wants them)")  # fmt: skip
    add("--palette", action="store_true", help="label maps as palette PNGs, which viewers show in colours")
    add("--scores", action="store_true", help="also write the probabilities of all classes")
    add(
        "--overlay", action=argparse.BooleanOptionalAction, default=True, help="write pictures (default: yes)"
    )
    add("--mosaic", action="store_true", help="label window by window at each image's own scale, in place of "
        "shrinking its short side to the evaluation's: for maps, slides and other large images")  # fmt: skip
    add("--device", help="cpu, cuda, cuda:1, mps or xpu; else the best that is there")
    add_model_options(parser)
    add("--batch", type=int, default=8, metavar="N", help="images that go through the model together (8)")
    add("--threads", type=int, default=min(4, os.cpu_count() or 1), metavar="N", help="that decode and write")
    return parser


def parse(argv: Sequence[str]) -> Request:
    """PredictError for what is missing; argparse ends the process for options that do not exist."""
    words, given, overrides = sort_words(argv, OLD_WORDS)
    options = parser().parse_intermixed_args(words)
    for name in ("output", "recipe", "classes", "device"):
        if name in given:
            setattr(options, name, given[name][-1])
    named = given.get("run", options.words[:1])
    inputs = [*(options.words if "run" in given else options.words[1:]), *given.get("inputs", [])]
    usage = "usage: maskshards predict RUN IMAGES... --output OUT (--help tells more)"
    wanted = {"RUN": named, "IMAGES": inputs, "--output": [options.output or ""]}
    for what, value in wanted.items():
        if not value or value == [""]:
            raise PredictError(f"{what} is missing; {usage}")
    if options.batch < 1 or options.threads < 1:
        raise PredictError(f"--batch {options.batch}, --threads {options.threads}: expected at least 1")
    return Request(named[-1], tuple(inputs), Path(options.output).expanduser(), tuple(overrides), options)


def predict(request: Request, found: Found) -> int:
    """Load the model, label what was found and tell what became of it; returns the exit status."""
    from tqdm import tqdm

    from maskshards.train.prediction.label_files import Pace, label_files
    from maskshards.train.prediction.outputs import Outputs

    options = request.options
    model = load(request)
    values = values_of_source(model, required=options.ids == "source")
    outputs = Outputs(
        request.output,
        model.class_names,
        overlay=options.overlay,
        palette=options.palette,
        values=values if options.ids == "source" else None,
        source_values=values,
    )
    outputs.prepare()
    pace = Pace(options.batch, options.threads, options.scores, options.mosaic)
    with tqdm(total=len(found.images), unit="image", disable=None) as bar:
        report = label_files(model, found.images, outputs, pace, bar.update)
    return tell(request, found, report)


def load(request: Request) -> Predictor:
    """The model that the request names."""
    from maskshards.train.predictor import load_model

    options = request.options
    return load_model(
        request.run,
        device=options.device,
        weights=options.weights,
        recipe=options.recipe,
        class_names=read_names(options.classes),
        overrides=request.overrides,
    )


def values_of_source(model: Predictor, required: bool) -> Any:
    """(num_classes,) label values of the training's source; None where nothing is known of them.

    PredictError if they are `required`.
    """
    from maskshards.train.prediction.source_values import rule_of, source_values

    rule = None if model.state is None else rule_of(model.state.label_rule, model.state.config)
    if rule is None and required:
        raise PredictError(
            "--ids source: the checkpoint does not say by which rule label values became classes; it is of "
            "an older version. Say --ids model and translate by hand"
        )
    try:
        return None if rule is None else source_values(rule, model.num_classes)
    except PredictError:
        if required:
            raise
        return None


def tell(request: Request, found: Found, report: Report) -> int:
    """Say what was done, what was passed over and what failed; the exit status."""
    folders = [
        str(request.output / name)
        for name, written in (
            ("labels", True),
            ("overlays", request.options.overlay),
            ("scores", request.options.scores),
        )
        if written
    ]
    where = f": {printable(' and '.join(folders))}" if report.labelled else ""
    sys.stdout.write(f"{counted(report.labelled, 'image')} labelled{where}\n")
    if found.summary():
        sys.stderr.write(printable(found.summary(), kept="\n") + "\n")
    if report.shrunk:
        sys.stderr.write(
            f"{counted(report.shrunk, 'image beyond 67 Mpx was', 'images beyond 67 Mpx were')} shrunk to the "
            "short side of the evaluation; --mosaic labels them at their own scale\n"
        )
    if not report.failed:
        return 0
    lines = [f"  {path}: {reason}" for path, reason in report.failed[:SHOWN]]
    more = len(report.failed) - SHOWN
    lines += [f"  and {more} more"] if more > 0 else []
    sys.stderr.write(
        f"{len(report.failed)} of {len(found.images)} images were not labelled:\n"
        + "".join(f"{printable(line)}\n" for line in lines)
    )
    return 1 if report.labelled else 2


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
