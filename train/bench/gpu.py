"""All that a GPU has to tell about a training step, in one process and one budget of seconds.

The command is `maskshards bench gpu --out FOLDER [--budget-s 540] [--device cpu] [key=value ...]`.

The models are built once a width and switched between variants. Every part's figures are appended to
FOLDER/gpu.jsonl before the next part begins; FOLDER/gpu.md is a table for docs/benchmarks/train-gpu.md. A
part that hangs or ends the process costs itself: those behind it go on in a new process. With
`--device cpu` all parts run on a tiny model: that measures nothing, and shows that the command works.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from maskshards.shards.process import die_with_parent
from maskshards.train.bench.budgeted import Budget, Part, run_parts
from maskshards.train.bench.command import chosen_device
from maskshards.train.bench.gpu_table import markdown, printed
from maskshards.train.bench.journal import FAILED, Journal
from maskshards.train.bench.parts import backbone, machine, operators, steps
from maskshards.train.bench.parts.gpu_tests import ROOT, gpu_tests
from maskshards.train.bench.parts.parity import parity
from maskshards.train.bench.parts.setting import Setting
from maskshards.train.bench.restarts import AGAIN, FIRST, LOST, WATCHED

LAST_WORDS_S = 10.0  # kept of the budget for writing and printing
TESTS_LIMIT_S = 150.0
RECORDED_CURVE = ROOT / "docs" / "benchmarks" / "precision.json"


def main(argv: Sequence[str]) -> int:
    """Measure in this process; the exit status.

    2 for a fault of the user's, told on stderr; 1 where a part failed; LOST where the device answers no more.
    """
    options, given = parser().parse_known_args(argv)
    try:
        setting = build_setting(options, tuple(given))
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    if options.watched:
        die_with_parent()
    journal = Journal(setting.out / "gpu.jsonl", anew=options.watched != AGAIN)
    chosen = [part for part in parts_of(setting, options) if not options.only or part.name in options.only]
    answers = run_parts(chosen, setting.budget, journal)
    if not options.watched:
        (setting.out / "gpu.md").write_text(markdown(journal.results), encoding="utf-8")
        sys.stdout.write(printed(journal.results, str(journal.path)))
    return LOST if not answers else int(any(result.status == FAILED for result in journal.results))


def parser() -> argparse.ArgumentParser:
    """The options; what else is given are settings of the configuration."""
    made = argparse.ArgumentParser(
        prog="maskshards bench gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: maskshards bench gpu --out gpu-bench --budget-s 540",
    )
    made.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the figures go")
    made.add_argument("--budget-s", type=float, default=540, metavar="S", help="seconds in all (default 540)")
    made.add_argument("--device", default="cuda", help="cuda (default), cuda:N, or cpu for a dry run")
    made.add_argument(
        "--only", action="append", default=[], metavar="PART", help="this part only, by name; may be repeated"
    )
    made.add_argument("--shards", type=Path, metavar="FOLDER", help="shards to read and learn from")
    made.add_argument(WATCHED, choices=(FIRST, AGAIN), help=argparse.SUPPRESS)
    made.add_argument(
        "--tests",
        action="append",
        metavar="PATH",
        help="tests to run (default: all of tests/); may be repeated",
    )
    return made


def build_setting(options: argparse.Namespace, given: tuple[str, ...]) -> Setting:
    """ValueError for a budget, a device or a setting that makes no sense."""
    if not options.budget_s > LAST_WORDS_S:
        raise ValueError(f"--budget-s {options.budget_s:g}: expected more than {LAST_WORDS_S:g} seconds")
    unknown = [word for word in given if "=" not in word]
    if unknown:
        raise ValueError(f"unknown argument {unknown[0]!r}: expected an option or key=value")
    device = chosen_device(options.device)
    options.out.mkdir(parents=True, exist_ok=True)
    budget = Budget(options.budget_s - LAST_WORDS_S)
    setting = Setting(device, options.out, budget, device.type == "cpu", given, options.shards)
    setting.config(setting.widths[0])  # a wrong key is told now, not in every part
    known = [part.name for part in parts_of(setting, options)]
    wrong = [name for name in options.only if name not in known]
    if wrong:
        raise ValueError(f"--only {wrong[0]!r}: no such part; known are {', '.join(known)}")
    return setting


def parts_of(setting: Setting, options: argparse.Namespace) -> list[Part]:
    """All parts in their order; what a part may need, in seconds, is for a GPU (a dry run needs less)."""
    small, large = setting.widths
    tests = partial(gpu_tests, setting, TESTS_LIMIT_S, tuple(options.tests or ["tests"]))
    work = [
        ("machine", 5, partial(machine.ceilings, setting)),
        ("attention backends", 10, partial(machine.attention_backends, setting)),
        ("tests", TESTS_LIMIT_S, tests),
        ("CUDA against CPU", 40, partial(parity, setting)),
        ("deformable attention", 15, partial(operators.attention, setting)),
        ("value gradient", 20, partial(operators.value_gradients, setting)),
        ("coordinates", 15, partial(operators.coordinates, setting)),
        ("loss", 15, partial(operators.loss, setting)),
        ("costs", 10, partial(operators.costs, setting)),
        ("layers", 10, partial(operators.layers, setting)),
        ("crop", 5, partial(operators.crops, setting)),
        ("nvJPEG", 10, partial(operators.jpeg_decoding, setting)),
        ("backbone in 8 bits", 60, partial(backbone.precisions, setting)),
        (f"width {small}", 25, partial(steps.eager, setting, small)),
        (f"width {large}", 45, partial(steps.eager, setting, large)),
        (f"width {small}, without", 20, partial(steps.without, setting, small)),
        (f"width {small}, recorded", 25, partial(steps.recorded, setting, small)),
        (f"width {large}, recorded", 35, partial(steps.recorded, setting, large)),
        (f"width {large}, sorted gradients", 20, partial(steps.sorted_gradients, setting, large)),
        (
            f"width {small}, other kernels", 25,
            partial(
                steps.chosen_otherwise, setting, small, "depthwise stencil", "coordinates by point",
                "costs from features",
            ),
        ),
        (
            f"width {large}, other kernels", 25,
            partial(steps.chosen_otherwise, setting, large, "torch's group norm", "costs from features"),
        ),
        (f"width {small}, compile=backbone", 40, partial(steps.compiled, setting, small, "backbone")),
        (f"width {large}, compile=backbone", 40, partial(steps.compiled, setting, large, "backbone")),
        (f"width {small}, compile=model", 80, partial(steps.compiled, setting, small, "model")),
        (f"width {small}, compile=model, recorded", 80, partial(steps.recorded, setting, small, "model")),
        (f"width {large}, compile=model", 80, partial(steps.compiled, setting, large, "model")),
        (f"width {small}, like the reference", 30, partial(steps.reference, setting, small)),
        (f"width {large}, like the reference", 60, partial(steps.reference, setting, large)),
        ("shards on two cores", 25, partial(steps.from_shards, setting)),
        (f"width {small}, plain attention", 20, partial(steps.plain_attention, setting, small)),
        (
            f"width {small}, CUDA graphs", 90,
            partial(steps.compiled, setting, small, "model", "reduce-overhead"),
        ),
        ("7B backbone", 60, partial(steps.large_backbone, setting)),
        ("learning", 120, partial(steps.learning, setting, RECORDED_CURVE)),
    ]  # fmt: skip
    return [Part(name, 0.0 if setting.tiny else needs_s, call) for name, needs_s, call in work]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
