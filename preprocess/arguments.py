"""The words of the commands that build, and what they mean."""

from __future__ import annotations

import argparse
import os
from dataclasses import fields
from pathlib import Path

from maskshards.preprocess.build import Part
from maskshards.preprocess.errors import BuildError
from maskshards.preprocess.inputs.image_policy import ImagePolicy
from maskshards.preprocess.plan import BuildSettings
from maskshards.preprocess.sources.coco import CHOICES, PANOPTIC, POLYGONS
from maskshards.preprocess.sources.opening import HUGGING_FACE, NO_VOID, TAKES, SourceRequest
from maskshards.shards.commands.one_line_parser import OneLineParser

EXAMPLES = {
    "build": "maskshards build --dataset ade20k --root ADEChallengeData2016 --out data/ade20k-shards",
    "finish": "maskshards finish data/ade20k-shards",
    "verify": "maskshards verify data/ade20k-shards --against ADEChallengeData2016",
    "scenes": "maskshards scenes --out scenes",
    "bench": "maskshards bench build --dataset ade20k --root ADEChallengeData2016",
}


def parser() -> argparse.ArgumentParser:
    """All commands with their options."""
    top = OneLineParser(
        prog="maskshards", description="Build shards from a data set of images and label maps."
    )
    commands = top.add_subparsers(dest="command", required=True)

    def command(name: str, what: str) -> argparse.ArgumentParser:
        prog = "maskshards bench build" if name == "bench" else f"maskshards {name}"
        return commands.add_parser(
            name, prog=prog, help=what, description=what, epilog=f"example: {EXAMPLES[name]}"
        )

    _add_build(command("build", "build shards; run it again after an interruption and it goes on"))
    finish = command("finish", "publish what the parts of an array job built")
    finish.add_argument("out", type=_place, help="the --out of the parts")
    _add_allow_rejects(finish)
    _add_license(finish)
    verify = command("verify", "compare every byte and pixel of shards with their source")
    verify.add_argument("out", type=_place, help="the folder that was built, or one split of it")
    verify.add_argument("--against", required=True, metavar="ROOT", help="the source data set")
    _add_workers(verify)
    scenes = command("scenes", "make a small data set to try everything on")
    scenes.add_argument("--out", type=_path, required=True, help="folder for it")
    scenes.add_argument("--training", type=_count, default=240, help="number of training scenes")
    scenes.add_argument("--validation", type=_count, default=48, help="number of validation scenes")
    scenes.add_argument("--seed", type=_count, default=0)
    bench = command("bench", "time a build against the least that it has to do")
    _add_source(bench)
    bench.add_argument("--rounds", type=int, default=5, help="figures are medians of so many")
    bench.add_argument(
        "--chunks", type=int, default=4, help="how often the split is worked through in a round"
    )
    bench.add_argument(
        "--workers", type=int, nargs="+", default=[1, 2], help="numbers of processes to compare"
    )
    bench.add_argument(
        "--peers",
        action="store_true",
        help="beside webdataset, MosaicML Streaming and litdata",
    )
    bench.add_argument("--json", action="store_true", help="figures for programs")
    return top


def _add_source(command: argparse.ArgumentParser) -> None:
    source = command.add_argument_group("source")
    source.add_argument(
        "--dataset",
        required=True,
        help=f"{', '.join(kind for kind in TAKES if kind != HUGGING_FACE)} or hf:NAME",
    )
    source.add_argument("--root", type=_path, help="the folder that the data set was unpacked to")
    source.add_argument("--splits", nargs="+", default=[], help="default: all that have labels")
    source.add_argument("--name", default="", help="name of the data set in the manifest")
    source.add_argument("--allow-count-mismatch", action="store_true", help="accept a partial copy of ADE20K")
    rule = command.add_argument_group("labels (what values in the label maps mean)")
    rule.add_argument("--classes", type=_path, metavar="FILE", help="class names, one a line")
    rule.add_argument(
        "--ignore-index", type=_void, metavar="V", help="label value of void pixels (255), or none"
    )
    rule.add_argument(
        "--reduce-zero-label", action=argparse.BooleanOptionalAction, help="0 is void and k means class k - 1"
    )
    rule.add_argument(
        "--mapping", default="", metavar="FILE", help="JSON: label value -> class id, or null for void"
    )
    rule.add_argument("--colours", type=_path, metavar="FILE", help="of RGB label maps: class,r,g,b a line")
    coco = command.add_argument_group("COCO")
    coco.add_argument("--annotations", default="", choices=(PANOPTIC, POLYGONS), help="default: panoptic")
    coco.add_argument("--segments", default="", choices=CHOICES, help="which become classes; default: both")
    coco.add_argument("--background", action="store_true", help="class 0 for what no segment covers")
    layout = command.add_argument_group("layout (of --dataset folder and hf:)")
    layout.add_argument("--lists", type=_path, metavar="DIR", help="of lists of names, such as train.txt")
    layout.add_argument(
        "--val-share", type=float, default=0.0, metavar="SHARE", help="draw the validation split, such as 0.1"
    )
    for word, text in (
        ("--images-folder", "instead of images; {split} in it stands for the split's name"),
        ("--labels-folder", "instead of annotations, labels or masks; likewise"),
        ("--image-ending", "such as _leftImg8bit.png; default: any image"),
        ("--label-ending", "such as _gtFine_labelIds.png or .tif; default .png"),
        ("--image-column", "of a Hugging Face data set; default: by its usual names"),
        ("--label-column", "likewise"),
        ("--config", "configuration of a Hugging Face data set"),
    ):
        layout.add_argument(word, default="", help=text)


def _add_build(build: argparse.ArgumentParser) -> None:
    _add_source(build)
    images = build.add_argument_group("images (bytes are kept unless asked otherwise)")
    images.add_argument(
        "--convert", action="store_true", help="re-encode what cannot be kept (CMYK, alpha, EXIF, WebP ...)"
    )
    images.add_argument(
        "--max-short-side",
        type=int,
        default=0,
        metavar="PX",
        help="re-encode larger images to this short side",
    )
    images.add_argument(
        "--scale", metavar="LOW:HIGH", help="values that become 0 and 255, of 16-bit and float images"
    )
    images.add_argument(
        "--bands", metavar="R,G,B", help="those to keep, from 1, of images with more than three"
    )
    images.add_argument(
        "--tile", type=int, default=0, metavar="PX", help="cut larger images, with their labels, into tiles"
    )
    images.add_argument(
        "--tile-overlap", type=int, metavar="PX", help="that neighbouring tiles share (an eighth of --tile)"
    )
    shards = build.add_argument_group("shards")
    shards.add_argument("--out", type=_place, required=True, help="where the splits' folders go")
    shards.add_argument("--samples-per-shard", type=int, default=256, help="source images (256)")
    shards.add_argument("--seed", type=int, default=0, help="of the permutation that deals samples to shards")
    _add_allow_rejects(shards)
    _add_license(shards)
    work = build.add_argument_group("work")
    work.add_argument(
        "--part", default="", metavar="I/N", help="only every N-th shard, from I (from 0); then finish"
    )
    _add_workers(work)
    work.add_argument("--executor", choices=("local", "dask"), default="local", help="where shards are made")
    work.add_argument("--scheduler", default="", metavar="ADDRESS", help="of the Dask cluster")
    work.add_argument("--quiet", action="store_true", help="no progress bar")


def _add_allow_rejects(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--allow-rejects",
        type=_count,
        default=0,
        metavar="K",
        help="publish without up to K refused inputs",
    )


def _add_license(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--license", default="unknown", metavar="ID", help="of the data set, for its card, such as cc-by-4.0"
    )


def _add_workers(group: argparse._ActionsContainer) -> None:
    group.add_argument("--workers", type=int, default=_cores(), help="processes; default: all cores")


def source_request(args: argparse.Namespace) -> SourceRequest:
    """The source as the user described it."""
    named = {field.name: getattr(args, field.name) for field in fields(SourceRequest) if field.name != "kind"}
    return SourceRequest(kind=args.dataset, **named)


def build_settings(args: argparse.Namespace) -> BuildSettings:
    """Everything besides the source that decides bytes."""
    scale, bands = scale_of(args.scale), bands_of(args.bands)
    tile_overlap = args.tile // 8 if args.tile_overlap is None else args.tile_overlap
    policy = ImagePolicy(
        convert=args.convert or bool(scale or bands),  # who says what values mean wants them read
        max_short_side=args.max_short_side,
        scale=scale,
        bands=bands,
        tile=args.tile,
        overlap=tile_overlap,
    )
    return BuildSettings(args.samples_per_shard, args.seed, policy)


def scale_of(word: str | None) -> tuple[float, float] | None:
    """`LOW:HIGH` as numbers; None where nothing was said."""
    if word is None:
        return None
    low, _, high = word.partition(":")
    try:
        return float(low), float(high)
    except ValueError:
        raise BuildError(f"--scale {word}: expected LOW:HIGH, such as 0:4095 or 0:1") from None


def bands_of(word: str | None) -> tuple[int, ...]:
    """`3,2,1` as numbers; empty where nothing was said."""
    if word is None:
        return ()
    parts = word.split(",")
    if not all(part.isdecimal() for part in parts):
        raise BuildError(f"--bands {word}: expected numbers from 1, such as 3,2,1")
    return tuple(map(int, parts))


def part_of(word: str) -> Part:
    """`I/N` as a part."""
    index, slash, count = word.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal()):
        raise BuildError(f"--part {word}: expected I/N with I from 0, such as 3/16")
    return Part(int(index), int(count))


def _path(word: str) -> Path:
    return Path(word).expanduser()


def _place(word: str) -> str:
    """A folder or URL; no shell expands the tilde of `--out=~/shards`."""
    return word if "://" in word else os.path.expanduser(word)


def _void(word: str) -> int:
    if word == "none":
        return NO_VOID
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"{word!r}: expected a label value, or none")
    return int(word)


def _count(word: str) -> int:
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"{word!r}: expected a number from 0")
    return int(word)


def _cores() -> int:
    """Cores that this process may use, where the system says so."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
