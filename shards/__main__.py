"""`maskshards info|check|preview|diff|plan|bench loader`: look at shards and check them.

A command's module is loaded when it is used. It offers `add_arguments(parser)`, `run(args) -> facts` and
`as_text(facts) -> str`; `--json` prints the facts themselves. Exit status 0; 1 where `facts["ok"]` is false
(damage or a difference was found); 2 where the question could not be answered, with one block on stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from importlib import import_module

from maskshards.shards.commands.one_line_parser import OneLineParser
from maskshards.shards.errors import error_text

ROOM = "maskshards.shards.commands"
# Name -> (module, what it does, an example).
COMMANDS = {
    "info": ("info", "what a data set holds: counts, bytes, class frequencies, sizes, fingerprint", "SHARDS"),
    "check": ("verify", "check every byte, every digest and every mask", "SHARDS"),
    "preview": ("preview", "one HTML page with masks drawn over images", "SHARDS --out preview.html"),
    "diff": ("diff", "compare two data sets sample by sample", "OLD NEW"),
    "plan": ("plan", "which samples a rank reads in a step", "SHARDS/training --global-batch 16 --step 100"),
    "bench": ("bench", "measure the loader stage by stage", "SHARDS"),
}
SPOKEN = {"bench": "bench loader"}  # how a command is called, where not by its name


def main(arguments: list[str]) -> int:
    """Run one command; the exit status."""
    listing = "\n".join(f"  {name:9}{what}" for name, (_, what, _) in COMMANDS.items())
    outer = OneLineParser(
        prog="python -m shards",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"commands:\n{listing}",
    )
    outer.add_argument("command", choices=[*COMMANDS, "verify"], metavar="COMMAND", help="one of these")
    name = outer.parse_args(arguments[:1]).command
    name = "check" if name == "verify" else name  # its name as a module, which `python -m shards` has kept
    module, what, example = COMMANDS[name]
    command = import_module(f"{ROOM}.{module}")
    prog = f"maskshards {SPOKEN.get(name, name)}"
    parser = OneLineParser(prog=prog, description=what, epilog=f"example: {prog} {example}")
    command.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(arguments[1:])
    try:
        facts = command.run(args)
        print(json.dumps(facts, indent=1) if args.json else command.as_text(facts))
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        print(f"error: {error_text(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0 if facts.get("ok", True) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
