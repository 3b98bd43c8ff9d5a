"""What can go wrong while shards are built, as types, and the note that is kept about one refused input.

`BuildError` stops the build at once. `RejectedInput` concerns one sample: the build notes it, goes on with
the others, and reports the whole list at the end.
"""

from __future__ import annotations

from dataclasses import dataclass

from maskshards.shards.errors import printable


class BuildError(ValueError):
    """The build cannot go on: settings, destination or a worker is at fault. The message says what to do."""


class SourceError(BuildError):
    """The source data set as a whole is not what its kind promises: a folder is missing, a count is wrong."""


class SourceUnavailable(SourceError):
    """Files of the source cannot be had now; that may pass, so no sample is refused for it."""


class RejectsError(BuildError):
    """Inputs were refused, and the build may not go on without them. `rejects` holds all of them."""

    def __init__(self, message: str, rejects: tuple[Reject, ...]) -> None:
        super().__init__(message)
        self.rejects = rejects


class RejectedInput(ValueError):
    """One sample of the source cannot become a record; the message is the reason and the way out."""


@dataclass(frozen=True, slots=True)
class Reject:
    """One refused input, as it stands in journals, in the manifest and in the final report."""

    name: str  # path of the file below the source's root, or the sample's name where there are no files
    reason: str  # what was found, what was expected, what to do; one line

    def __str__(self) -> str:
        return f"{printable(self.name)}: {printable(self.reason)}"
