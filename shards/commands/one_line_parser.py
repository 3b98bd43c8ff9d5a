"""argparse whose errors are one line, with the nearest option, in place of the whole usage."""

from __future__ import annotations

import argparse
import difflib
import re
from typing import Any, NoReturn

WORD = re.compile(r"unrecognized arguments:.*?(--[\w-]+)")


class OneLineParser(argparse.ArgumentParser):
    """An `ArgumentParser`; a wrong word ends the process with status 2 and one line on stderr."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does; words that are left over are told by the parser of the command that was named."""
        known, left = self.parse_known_args(args, namespace)
        if left:
            self._of_command(known).error(f"unrecognized arguments: {' '.join(left)}")
        return known

    def _of_command(self, known: argparse.Namespace) -> argparse.ArgumentParser:
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                parser: argparse.ArgumentParser = action.choices[getattr(known, action.dest)]
                return parser
        return self

    def error(self, message: str) -> NoReturn:
        """Say `message`, and the option that was probably meant by one that does not exist."""
        wrong = WORD.search(message)
        options = [word for action in self._actions for word in action.option_strings]
        near = difflib.get_close_matches(wrong[1], options, n=1) if wrong else []
        hint = f"; did you mean {near[0]}?" if near else ""
        self.exit(2, f"error: {self.prog}: {message}{hint} (`{self.prog} --help` lists all)\n")
