"""Who is to blame when ranks wait for each other, judged by what each last said of itself.

A rank says where it is, for how long without progress, and whether it waits for others there (or may: a step
ends in a collective). Whoever is somewhere else meanwhile, alive or silent, is waited for. Nobody is blamed
while nobody waits: all may well be slow together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

BEAT_S = 2.0  # between two signs of life
SILENT_BEATS = 3  # that many missed: the rank is silent
WARN_S = 60.0  # of silence, or of ranks that do different things, before a warning; then twice as long, ...
ENDED_S = 30.0  # after the error of a rank, for the others to notice by themselves
NAMED_RANKS = 8
DONE = "done"  # the last word of a rank that did all it should


def store_lost(keeper: str) -> str:
    """Why a launch ends whose store answers nobody: the process that keeps it, such as `rank 0 at gpu01`."""
    return (
        f"no answer from {keeper}, with which the launch's store lives: that process ended, was stopped or "
        "hangs; look at its log and its node"
    )


class LostRankError(ConnectionError):
    """Ranks that the others wait for do not come; the message names them."""


@dataclass(frozen=True, slots=True)
class Record:
    """What one rank last said of itself."""

    beat: int  # how often it wrote
    step: int  # that it is in
    doing: str
    since_s: float  # how long it has been doing that, without progress
    ended: str = ""  # why: DONE, or the error that ended it; empty while it lives
    waits: bool = False  # for other ranks, or may do so there
    patience_s: float = 1800.0  # how long it may be there while others wait
    host: str = ""  # its node; empty where all ranks are on one

    @property
    def words(self) -> str:
        if self.ended:
            return f"in step {self.step}, {self.doing}: {self.ended}"
        return f"last heard in step {self.step}, {self.doing} for {self.since_s:.0f} s"


class Watch:
    """Remembers when each rank last wrote, when one failed, and when the ranks last moved together.

    `silence_s`: how long a rank may be silent while others wait, whatever it last said that it does.
    """

    def __init__(self, silence_s: float = 1800.0) -> None:
        self.silence_s = silence_s
        self._beats: dict[int, tuple[int, float]] = {}  # rank: (beat, when it came)
        self._due_s = WARN_S
        self._failed_at: float | None = None

    def changes(self, records: dict[int, Record], now: float) -> str:
        """A warning that is due at `now` (s, any clock that runs), or nothing."""
        alive, silent_s = self._silence(records, now)
        longest_s = max(silent_s.values(), default=0.0)
        stuck_s = min((record.since_s for record in alive.values()), default=0.0)
        apart = len({(record.step, record.doing) for record in alive.values()}) > 1
        if longest_s < WARN_S and not (apart and stuck_s >= WARN_S):
            self._due_s = WARN_S
            return ""
        if max(longest_s, stuck_s) < self._due_s:
            return ""
        self._due_s *= 2
        silent = {rank: record for rank, record in alive.items() if silent_s[rank] >= WARN_S}
        if silent:
            return f"no sign of life for {longest_s:.0f} s from {named(silent)}"
        return f"no step for {stuck_s:.0f} s: {apart_words(alive)}"

    def verdict(self, records: dict[int, Record], now: float) -> str:
        """Why the launch has to end at `now`; empty while there is hope.

        Either a rank ended with an error a while ago, or one is waited for longer than its patience: it is
        silent for that long, or lives and makes no progress at a place where it waits for nobody.
        """
        alive, silent_s = self._silence(records, now)
        if ended := failed(records):
            self._failed_at = now if self._failed_at is None else self._failed_at
            return ended_words(ended) if now - self._failed_at >= ENDED_S else ""
        self._failed_at = None
        waited_s = {  # by those who live
            rank: record.since_s
            for rank, record in alive.items()
            if record.waits and silent_s[rank] < SILENT_BEATS * BEAT_S
        }
        silent, still = {}, {}
        for rank, record in alive.items():
            by_others_s = max((seconds for other, seconds in waited_s.items() if other != rank), default=-1.0)
            if min(by_others_s, silent_s[rank]) >= min(self.silence_s, record.patience_s):
                silent[rank] = record
            elif not record.waits and min(by_others_s, record.since_s) >= record.patience_s:
                still[rank] = record
        if silent:
            return "no sign of life from " + named(silent)
        return "no progress of " + named(still) if still else ""

    def _silence(self, records: dict[int, Record], now: float) -> tuple[dict[int, Record], dict[int, float]]:
        """(those that have not ended, how long each of them has not written)."""
        for rank, record in records.items():
            if rank not in self._beats or self._beats[rank][0] != record.beat:
                self._beats[rank] = record.beat, now
        alive = {rank: record for rank, record in records.items() if not record.ended}
        return alive, {rank: now - self._beats[rank][1] for rank in alive}


def failed(records: dict[int, Record]) -> dict[int, Record]:
    """Ranks that ended before their work was done.

    They are those with an error of their own, else those that only waited for others.
    """
    ended = {rank: record for rank, record in records.items() if record.ended not in ("", DONE)}
    lost = LostRankError.__name__
    return {rank: record for rank, record in ended.items() if not record.ended.startswith(lost)} or ended


def ended_words(ended: dict[int, Record]) -> str:
    """Why `failed` ranks ended; where they only waited for others, the words in which they said for whom."""
    words = next(iter(ended.values())).ended
    lost = f"{LostRankError.__name__}: "
    return words.removeprefix(lost) if words.startswith(lost) else "ended: " + named(ended)


def with_hosts(records: dict[int, Record]) -> dict[int, Record]:
    """All ranks' `records`, with their nodes if there are several: on a single one the name says nothing."""
    if len({record.host for record in records.values() if record.beat}) > 1:
        return records
    return {rank: replace(record, host="") for rank, record in records.items()}


def elsewhere(records: dict[int, Record], rank: int) -> dict[int, Record]:
    """Ranks that live and have long been at another place than `rank`, which has long been at its own.

    They are stuck in data or a file system, while it waits for them. Empty where `rank` has only just come to
    its place.
    """
    own = records[rank]
    others = {
        other: one
        for other, one in records.items()
        if not one.ended
        and (one.step, one.doing, one.waits) != (own.step, own.doing, own.waits)
        and min(one.since_s, own.since_s) >= min(WARN_S, one.patience_s)
    }
    return {other: one for other, one in others.items() if not one.waits} or others


def named(records: dict[int, Record]) -> str:
    """Ranks with their last words, the first few of them."""
    words = [
        f"rank {rank}{f' on {record.host}' if record.host else ''} ({record.words})"
        for rank, record in list(records.items())[:NAMED_RANKS]
    ]
    return ", ".join(words) + (
        f" and {len(records) - NAMED_RANKS} more" if len(records) > NAMED_RANKS else ""
    )


def apart_words(records: dict[int, Record]) -> str:
    """Who is where: the smaller group first, since the many wait for the few."""
    groups: dict[tuple[int, str], dict[int, Record]] = {}
    for rank, record in records.items():
        groups.setdefault((record.step, record.doing), {})[rank] = record
    few, *rest = sorted(groups.values(), key=len)
    others = ", ".join(f"{len(group)} at step {s.step}, {s.doing}" for group in rest for s in [first(group)])
    return f"{named(few)}; {others}"


def first(group: dict[int, Record]) -> Record:
    return next(iter(group.values()))
