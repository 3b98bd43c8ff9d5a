"""`maskshards report RUN RUN ...`: runs side by side on one page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from maskshards.shards.commands.one_line_parser import OneLineParser
from maskshards.shards.errors import error_text

EPILOG = """the page shows settings that differ, curves over each other, scores and the IoU of each class, and
says why scores cannot be compared. It is one file that loads nothing. (A run's own page is OUT/report.html,
which training writes.)

example:
  maskshards report runs/a runs/b --out comparison.html"""

DEFAULT = "comparison.html"


def parser() -> argparse.ArgumentParser:
    """Options and their help."""
    parser = OneLineParser(
        prog="maskshards report",
        description="Compare trainings or evaluations side by side.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="the output_dir of a training or an evaluation; two to five"
    )
    parser.add_argument(
        "--out", "--output", "-o", type=Path, default=Path(DEFAULT), metavar="FILE",
        help=f"the page, or a folder for it ({DEFAULT})",
    )  # fmt: skip
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command; the exit status, 2 for a fault of the user's, told in one line on stderr."""
    args = parser().parse_args(argv)
    try:
        sys.stdout.write(f"{report(args.runs, args.out.expanduser())}\n")
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error_text(error)}\n")
        return 2
    return 0


def report(runs: Sequence[str], out: Path) -> str:
    """Write the page; returns the line that says where. ValueError for folders that are no two runs."""
    folders = [Path(run).expanduser() for run in runs]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ValueError("one run is named twice; name the output_dir of different runs")
    from maskshards.train.comparison.comparison import LETTERS, write_comparison
    from maskshards.train.comparison.past_run import check_run, read_run

    for folder in folders:
        check_run(folder)
    out = out / DEFAULT if out.is_dir() else out
    if not 2 <= len(folders) <= len(LETTERS):
        page = folders[0] / "report.html"
        hint = f"; the page of this run alone is {page}" if len(folders) == 1 and page.is_file() else ""
        raise ValueError(f"runs named: {len(folders)}, expected two to {len(LETTERS)}{hint}")
    write_comparison([read_run(folder) for folder in folders], out)
    return f"{out}: {len(folders)} runs; open it in a browser"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
