"""argparse whose errors are one line, with the nearest option, in place of the whole usage."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterator
from typing import NoReturn

WORD = re.compile(r"unrecognized arguments:.*?(--[\w-]+)")


class OneLineParser(argparse.ArgumentParser):
    """An `ArgumentParser`; a wrong word ends the process with status 2 and one line on stderr."""

    def error(self, message: str) -> NoReturn:
        """Say `message`, and the option that was probably meant by one that does not exist."""
        wrong = WORD.search(message)
        near = difflib.get_close_matches(wrong[1], _options(self), n=1) if wrong else []
        hint = f"; did you mean {near[0]}?" if near else ""
        self.exit(2, f"error: {self.prog}: {message}{hint} (`{self.prog} --help` lists all)\n")


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The options of `parser` and of its commands."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _options(command)
