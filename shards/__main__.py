"""`maskshards COMMAND ...`: look at shards and check them. A command's module is loaded when used.

A command offers `add_arguments(parser)`, `run(words) -> facts` and `as_text(facts) -> str`; `--json` prints
the facts themselves. Exit status 0; 1 where `facts["ok"]` is false (damage or a difference was found); 2
where the question could not be answered, with one block on stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from importlib import import_module

COMMANDS = {
    "info": (
        "maskshards.shards.commands.info",
        "what a data set holds: counts, bytes, class frequencies, sizes, fingerprint",
    ),
    "verify": ("maskshards.shards.commands.verify", "check every byte, every digest and every mask"),
    "preview": ("maskshards.shards.commands.preview", "one HTML page with masks drawn over images"),
    "diff": ("maskshards.shards.commands.diff", "compare two data sets sample by sample"),
    "plan": ("maskshards.shards.commands.plan", "which samples a rank reads in a step"),
    "bench": ("maskshards.shards.commands.bench", "measure the loader stage by stage"),
}


def main(arguments: list[str]) -> int:
    """Run one command; the exit status."""
    listing = "\n".join(f"  {name:9}{what}" for name, (_, what) in COMMANDS.items())
    outer = argparse.ArgumentParser(
        prog="maskshards",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"commands:\n{listing}",
    )
    outer.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of the commands below")
    name = outer.parse_args(arguments[:1]).command
    command = import_module(COMMANDS[name][0])
    parser = argparse.ArgumentParser(prog=f"maskshards {name}", description=COMMANDS[name][1])
    command.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    words = parser.parse_args(arguments[1:])
    try:
        facts = command.run(words)
        print(json.dumps(facts, indent=1) if words.json else command.as_text(facts))
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0 if facts.get("ok", True) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
