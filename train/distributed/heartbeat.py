"""A sign of life from every rank, so that one that is lost or stuck can be named.

A collective that times out does not say for whom it waited, and NCCL's timeout ends the process from a thread
of its own, without a word of ours. So every rank has a thread that keeps writing to the store of the launch
how often it wrote, in which step it is, what it does there and since when. The first rank (and the second, in
case it is the first that is lost) reads all of them and warns early; when a collective fails, every rank can
read who is missing.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

logger = logging.getLogger(__name__)

BEAT_S = 2.0  # between two signs of life
SILENT_BEATS = 3  # that many missed: the rank is silent
WARN_S = 60.0  # of silence, or of ranks that do different things, before a warning; then twice as long, ...
ANSWER_TIMEOUT = timedelta(seconds=5)  # of the store
NAMED_RANKS = 8
WATCHERS = 2  # the first ranks warn
DONE = "done"  # the last word of a rank that did all it should


@dataclass(frozen=True, slots=True)
class Record:
    """What one rank last said of itself."""

    beat: int  # how often it wrote
    step: int  # that it is in
    doing: str
    since_s: float  # how long it has been doing that
    ended: bool = False

    @property
    def words(self) -> str:
        return (
            self.doing
            if self.ended
            else f"last heard in step {self.step}, {self.doing} for {self.since_s:.0f} s"
        )


class Heartbeat:
    """This rank's thread, and its view of the others. `store` is the launch's, shared by all ranks."""

    def __init__(self, store: dist.Store, rank: int, num_ranks: int) -> None:
        self.rank, self.num_ranks = rank, num_ranks
        self._store = dist.PrefixStore("heartbeat", store.clone())  # type: ignore[attr-defined]  # not in its stubs
        self._store.set_timeout(ANSWER_TIMEOUT)
        self._lock = threading.Lock()  # a store serves one thread at a time
        self._place = (0, "starting", time.monotonic())
        self._beat = 0
        self._over = threading.Event()
        self._watch = Watch() if rank < WATCHERS else None
        self._write()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """From here on every rank has written once, so that none is looked for in vain."""
        self._thread.start()

    def at(self, step: int, doing: str) -> None:
        """Say where this rank is; costs nothing, the thread writes it."""
        self._place = (step, doing, time.monotonic())

    def doing(self, what: str) -> None:
        """Say what this rank does now, in the same step."""
        self.at(self._place[0], what)

    def end(self, reason: str) -> None:
        """Stop the thread and leave `reason` as the last word."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(2 * ANSWER_TIMEOUT.total_seconds())
        self._place = (self._place[0], reason, time.monotonic())
        try:
            self._write(ended=True)
        except RuntimeError:
            logger.debug("the store is gone; nobody reads the last word")

    def missing(self) -> str:
        """Who is to blame for a collective that failed: ranks that ended, are silent or do not get on, each
        with its last words; empty if nobody is. Takes up to SILENT_BEATS beats.
        """
        try:
            before = self.look()
            ended = failed(before)
            if not ended:
                threading.Event().wait(SILENT_BEATS * BEAT_S)
                after = self.look()
                ended = failed(after)
                others = {
                    rank: record for rank, record in after.items() if rank != self.rank and not record.ended
                }
                stuck = {rank: record for rank, record in others.items() if record.beat == before[rank].beat}
                if stuck and not ended:
                    return "no sign of life from " + named(stuck)
                if not ended and (behind := elsewhere(after, self.rank)):
                    return "no progress of " + named(behind)
        except RuntimeError:
            return "the launch's store does not answer any more; it lives with rank 0 or its launcher"
        return "ended: " + named(ended) if ended else ""

    def look(self) -> dict[int, Record]:
        """Every rank's record. RuntimeError if the store does not answer."""
        with self._lock:
            texts = self._store.multi_get([str(rank) for rank in range(self.num_ranks)])
        return {rank: Record(**json.loads(text)) for rank, text in enumerate(texts)}

    def _run(self) -> None:
        while not self._over.wait(BEAT_S):
            try:
                self._write()
                warning = self._watch.changes(self.look(), time.monotonic()) if self._watch else ""
            except RuntimeError as error:
                logger.debug("no answer from the store: %s", error)
                continue
            if warning and (self.rank == 0 or "rank 0 " in warning):
                logger.error("%s", warning)

    def _write(self, ended: bool = False) -> None:
        step, doing, since = self._place
        self._beat += 1
        record = {"beat": self._beat, "step": step, "doing": doing, "since_s": time.monotonic() - since}
        with self._lock:
            self._store.set(str(self.rank), json.dumps(record | {"ended": ended}))


class Watch:
    """Remembers when each rank last wrote and when the ranks last moved together."""

    def __init__(self) -> None:
        self._beats: dict[int, tuple[int, float]] = {}  # rank: (beat, when it came)
        self._due_s = WARN_S

    def changes(self, records: dict[int, Record], now: float) -> str:
        """A warning that is due at `now` (s, any clock that runs), or nothing."""
        for rank, record in records.items():
            if rank not in self._beats or self._beats[rank][0] != record.beat:
                self._beats[rank] = record.beat, now
        alive = {rank: record for rank, record in records.items() if not record.ended}
        silent_s = {rank: now - self._beats[rank][1] for rank in alive}
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


def failed(records: dict[int, Record]) -> dict[int, Record]:
    """Ranks that ended before their work was done: those with an error of their own, else those that only
    waited for others.
    """
    ended = {rank: record for rank, record in records.items() if record.ended and record.doing != DONE}
    own = {
        rank: record for rank, record in ended.items() if not record.doing.startswith(LostRankError.__name__)
    }
    return own or ended


def elsewhere(records: dict[int, Record], rank: int) -> dict[int, Record]:
    """Ranks that live and have long been at another place than `rank`, which has long been at its own.

    They are stuck in data or a file system, while it waits for them. Empty where `rank` has only just come to
    its place.
    """
    own = records[rank]
    return {
        other: one
        for other, one in records.items()
        if not one.ended
        and (one.step, one.doing) != (own.step, own.doing)
        and min(one.since_s, own.since_s) >= WARN_S
    }


def named(records: dict[int, Record]) -> str:
    """Ranks with their last words, the first few of them."""
    words = [f"rank {rank} ({record.words})" for rank, record in list(records.items())[:NAMED_RANKS]]
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


class LostRankError(ConnectionError):
    """Ranks that the others wait for do not come; the message names them."""


@contextmanager
def told_apart(heartbeat: Heartbeat) -> Iterator[None]:
    """Inside, the failure of a collective becomes a LostRankError that names the ranks to blame; any other
    error becomes this rank's last word, for the others to read.
    """
    heartbeat.start()
    try:
        yield
    except (RuntimeError, LostRankError) as error:
        known = isinstance(error, LostRankError | dist.DistError) or type(error) is RuntimeError
        missing = heartbeat.missing() if known else ""
        heartbeat.end(last_word(LostRankError(missing) if missing else error))
        if not missing:
            raise
        raise LostRankError(f"{missing}. The collective's own words: {one_line(error)}") from error
    except BaseException as error:
        heartbeat.end(last_word(error))
        raise
    heartbeat.end(DONE)


def last_word(error: Any) -> str:
    return f"{type(error).__name__}: {one_line(error)}"


def one_line(error: Any, limit: int = 300) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."
