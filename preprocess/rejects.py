"""What is told of refused inputs: grouped by reason, a few of each shown, all of them in a file.

A data set that does not fit has the same fault thousands of times; a list of all buries the second reason.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from maskshards.preprocess.destinations.local import BUILD_FOLDER, Destination
from maskshards.preprocess.errors import Reject, RejectsError
from maskshards.shards.errors import printable

REJECTS_FILE = f"{BUILD_FOLDER}/rejects.txt"
SHOWN = 5  # of each reason
SHOWN_REASONS = 12


def check_rejects(refused: Sequence[tuple[Destination, tuple[Reject, ...]]], allowed: int, when: str) -> None:
    """RejectsError where more than `allowed` inputs were refused; `when` says what then does not happen.

    Before that, each destination gets a file that lists all of its own.
    """
    rejects = tuple(reject for _, some in refused for reject in some)
    if len(rejects) <= allowed:
        return
    files = []
    for destination, some in refused:
        if some:
            lines = (f"{printable(reject.name)}\t{printable(reject.reason)}\n" for reject in some)
            destination.write(REJECTS_FILE, "".join(lines).encode("utf-8", "backslashreplace"))
            files.append(f"{destination}/{REJECTS_FILE}")
    were = "inputs were" if len(rejects) > 1 else "input was"
    raise RejectsError(
        f"{len(rejects)} {were} refused (--allow-rejects is {allowed}), so {when}:\n{reject_table(rejects)}\n"
        f"All of them: {', '.join(files)}. Mend or remove them and run the same command again: shards without"
        f" refused inputs are kept. Or publish without them: --allow-rejects {len(rejects)}",
        rejects,
    )


def reject_table(rejects: Sequence[Reject]) -> str:
    """The first of each reason, a line each, the commonest reason first, and how many more there are."""
    groups: dict[str, list[Reject]] = {}
    for reject in rejects:
        groups.setdefault(_kind(reject), []).append(reject)
    lines = []
    ranked = sorted(groups.values(), key=len, reverse=True)
    for group in ranked[:SHOWN_REASONS]:
        lines += [f"  {reject}" for reject in group[:SHOWN]]
        if len(group) > SHOWN:
            lines.append(f"    ... and {len(group) - SHOWN} more for the same reason")
    rest = ranked[SHOWN_REASONS:]
    if rest:
        lines.append(f"  ... and {sum(map(len, rest))} more for {len(rest)} other reasons")
    return "\n".join(lines)


def _kind(reject: Reject) -> str:
    """The reason without what differs from file to file: its own name, and numbers."""
    stem = PurePosixPath(reject.name).stem
    return re.sub(r"\d+", "#", reject.reason.replace(stem, "*") if stem else reject.reason)
