"""The command `maskshards`: one table of commands; the module behind a command is loaded when it is called.

Each entry is a function that takes the command's arguments and returns the exit status. They are checked
before anything heavy is imported, and Ctrl-C until then ends the process without a traceback.
"""

from __future__ import annotations

import difflib
import os
import sys
from importlib import import_module

from maskshards.shards.errors import StoreError
from maskshards.shards.process import check_names, check_working_folder, open_closed_streams

BUILD, SHARDS = "maskshards.preprocess.__main__:main", "maskshards.shards.__main__:main"
# Name -> (function, arguments that come before the user's, what the command does).
COMMANDS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "build": (BUILD, ("build",), "build shards from a data set; run again, it goes on"),
    "finish": (BUILD, ("finish",), "publish what the parts of an array job built"),
    "verify": (BUILD, ("verify",), "compare every byte and pixel of shards with their source"),
    "scenes": (BUILD, ("scenes",), "make a small data set to try everything on"),
    "info": (SHARDS, ("info",), "what a data set holds: counts, classes, sizes, fingerprint"),
    "check": (SHARDS, ("check",), "check every byte, every digest and every mask of shards"),
    "preview": (SHARDS, ("preview",), "one HTML page with masks drawn over images"),
    "diff": (SHARDS, ("diff",), "compare two data sets sample by sample"),
    "plan": (SHARDS, ("plan",), "which samples a rank reads in a step"),
    "train": ("maskshards.train.__main__:main", (), "train a head, alone or under torchrun or srun"),
    "evaluate": ("maskshards.train.__main__:evaluate_main", (), "score the weights behind load_from"),
    "report": ("maskshards.train.comparison.command:main", (), "trainings or evaluations side by side"),
    "predict": ("maskshards.train.predict:main", (), "label maps and pictures for images"),
    "export": ("maskshards.train.export.command:main", (), "ONNX, torch.export or a folder for the hub"),
}
BENCHES: dict[str, tuple[str, tuple[str, ...], str]] = {
    "build": (BUILD, ("bench",), "a build against the least that it has to do"),
    "loader": (SHARDS, ("bench",), "where the loader's time goes, stage by stage"),
    "step": ("maskshards.train.bench.command:main", (), "where a training step's time and memory go"),
    "gpu": (
        "maskshards.train.bench.restarts:main",
        (),
        "all that a GPU has to tell, in a budget of seconds",
    ),
}
# Packages of the extra `train`, by the names that they are imported by.
TRAIN = (
    "torch",
    "transformers",
    "omegaconf",
    "yaml",
    "safetensors",
    "scipy",
    "huggingface_hub",
    "webdataset",
)
STATUSES = """exit status:
  0    done
  1    the answer is no: damage, a difference, files left out, or training that had to stop
  2    the command cannot be carried out as given; one block on stderr says why
  130  Ctrl-C (128 + the number of the signal that ended it)"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit status."""
    args = sys.argv[1:] if arguments is None else arguments
    open_closed_streams()
    try:
        check_names()
        check_working_folder()
    except StoreError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    try:
        return dispatch(args, COMMANDS, "maskshards")
    except KeyboardInterrupt:
        return 130
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in TRAIN:
            raise
        told = f"this needs {error.name}, which is not installed: pip install 'maskshards[train]'"
        sys.stderr.write(f"error: {told}\n")
        return 2
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def dispatch(args: list[str], table: dict[str, tuple[str, tuple[str, ...], str]], program: str) -> int:
    """Find the command that `args` begin with and give it the rest."""
    if not args or args[0] in ("-h", "--help"):
        (sys.stdout if args else sys.stderr).write(listing(table, program) + "\n")
        return 0 if args else 2
    if args[0] in ("-V", "--version"):
        from maskshards import __version__

        sys.stdout.write(f"maskshards {__version__}\n")
        return 0
    name, rest = args[0], args[1:]
    if name == "bench" and table is COMMANDS:
        return dispatch(rest, BENCHES, "maskshards bench")
    if name not in table:
        close = difflib.get_close_matches(name, [*table, "bench"], n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(table)} and bench"
        sys.stderr.write(f"error: {program} {name}: no such command; {hint}\n")
        return 2
    place, before, _ = table[name]
    module, function = place.split(":")
    status: int = getattr(import_module(module), function)([*before, *rest])
    return status


def listing(table: dict[str, tuple[str, tuple[str, ...], str]], program: str) -> str:
    """The help of a table of commands."""
    rows = [(name, what) for name, (_, _, what) in table.items()]
    if table is COMMANDS:
        rows.append(("bench", "measure: bench " + " | ".join(BENCHES)))
    commands = "\n".join(f"  {name:10}{what}" for name, what in rows)
    example = "bench loader data/shards" if table is BENCHES else "info data/shards"
    return (
        f"usage: {program} COMMAND ...\n\ncommands:\n{commands}\n\n"
        f"`{program} COMMAND --help` explains one of them; for example: maskshards {example}\n\n{STATUSES}"
    )


if __name__ == "__main__":
    sys.exit(main())
