"""A sign of life from every rank, so that one that is lost or stuck can be named.

A collective that times out does not say for whom it waited, and NCCL's timeout ends the process from a thread
of its own, without a word of ours. So every rank has a thread that keeps writing to the store of the launch
how often it wrote, in which step it is, what it does there and since when. The first rank (and the second, in
case it is the first that is lost) reads all of them and warns early. Where others wait for a rank longer than
they should, one of the two says so to all, and every rank ends with the same words: by itself where it waits
in short waits, else by its thread, for what waits in a device or a file system cannot be woken.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from maskshards.train.distributed import lost_ranks, process_end
from maskshards.train.distributed.bounded_wait import plain_words
from maskshards.train.distributed.lost_ranks import (
    DONE,
    SILENT_BEATS,
    LostRankError,
    Record,
    Watch,
    elsewhere,
    ended_words,
    failed,
    named,
    store_lost,
    with_hosts,
)

logger = logging.getLogger(__name__)

PATIENCE_S = 1800.0  # for what may honestly take long, such as fetching weights
ANSWER_TIMEOUT = timedelta(seconds=5)  # of the store
WATCHERS = 2  # the first ranks warn and judge
VERDICT = "verdict"


class Heartbeat:
    """This rank's thread, and its view of the others. `store` is the launch's, shared by all ranks.

    `patience_s`: how long the others wait for a rank that makes no progress in a step, an evaluation or a
    checkpoint. `keeper`: the process that the store lives with.
    """

    def __init__(
        self,
        store: dist.Store,
        rank: int,
        num_ranks: int,
        patience_s: float = PATIENCE_S,
        keeper: str = "rank 0",
    ) -> None:
        self.rank, self.num_ranks, self.patience_s = rank, num_ranks, patience_s
        self.no_store = store_lost(keeper)
        self._host = socket.gethostname()
        self.verdict = ""  # why the launch has to end; the same on every rank
        self._store = dist.PrefixStore("heartbeat", store.clone())  # type: ignore[attr-defined]  # not in its stubs
        self._store.set_timeout(ANSWER_TIMEOUT)
        self._lock = threading.Lock()  # a store serves one thread at a time
        self._clock = RunningClock()
        self._place = Record(0, 0, "starting", 0.0, patience_s=PATIENCE_S)
        self._since = 0.0  # on the clock
        self._answered = 0.0  # the store; on the clock
        self._beat = 0
        self.num_answers = 0  # of the store, to the thread
        self._over = threading.Event()
        self._watch = Watch(patience_s) if rank < WATCHERS else None
        self._write()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """From here on this rank writes by itself."""
        self._thread.start()

    def at(self, step: int, doing: str, *, waits: bool = False, slow: bool = False) -> None:
        """Say where this rank is, which counts as progress; costs nothing, the thread writes it.

        `waits`: it waits for other ranks there, or may. `slow`: that may honestly take long.
        """
        patience_s = max(self.patience_s, PATIENCE_S) if slow else self.patience_s
        self._place = Record(0, step, doing, 0.0, waits=waits, patience_s=patience_s)
        self._since = self._clock.s

    @property
    def place(self) -> str:
        """Where this rank is, or was when it ended, for people."""
        return f"rank {self.rank} of {self.num_ranks}, in step {self._place.step}, {self._place.doing}"

    def doing(self, what: str, *, waits: bool = False, slow: bool = False) -> None:
        """Say what this rank does now, in the same step."""
        self.at(self._place.step, what, waits=waits, slow=slow)

    @contextmanager
    def waiting(self, what: str = "") -> Iterator[None]:
        """Inside, this rank waits for others, for `what`; afterwards it is where it was, and has got on."""
        before = self._place
        self.at(before.step, what or before.doing, waits=True)
        try:
            yield
        finally:
            self._place, self._since = before, self._clock.s

    def check(self) -> None:
        """LostRankError if the launch has to end; asked for in every wait that can be left."""
        if self.verdict:
            raise LostRankError(self.verdict)

    def end(self, reason: str) -> None:
        """Stop the thread and leave `reason` as the last word."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(2 * ANSWER_TIMEOUT.total_seconds())
            if self._thread.is_alive():
                return  # it waits for the store, which answers nobody
        self._place = replace(self._place, ended=reason)
        try:
            self._write()
        except RuntimeError:
            logger.debug("the store is gone; nobody reads the last word")

    def missing(self) -> str:
        """Who is to blame for a collective that failed; empty if nobody is.

        These are ranks that ended, are silent or do not get on, each with its last words. Takes up to
        SILENT_BEATS beats.
        """
        if self.verdict:
            return self.verdict
        try:
            before = self.look()
            ended = failed(before)
            if not ended:
                pause(SILENT_BEATS * lost_ranks.BEAT_S)
                if self.verdict:  # a rank that ends by it writes no more: it is not silent
                    return self.verdict
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
            return self.no_store
        return ended_words(ended) if ended else ""

    def absent(self) -> str:
        """The ranks that are not where this one waits, with their last words."""
        try:
            records = self.look()
        except RuntimeError:
            return self.no_store
        here = self._place.step, self._place.doing, True
        away = {rank: one for rank, one in records.items() if (one.step, one.doing, one.waits) != here}
        return "not there: " + named({rank: one for rank, one in away.items() if rank != self.rank})

    def look(self) -> dict[int, Record]:
        """Every rank's record, beat 0 for one that has not written yet.

        RuntimeError if the store does not answer.
        """
        keys = [str(rank) for rank in range(self.num_ranks)]
        with self._asking():
            written = keys if self._store.check(keys) else [key for key in keys if self._store.check([key])]
            texts = self._store.multi_get(written)
        unheard = {rank: Record(0, 0, "starting", 0.0) for rank in range(self.num_ranks)}
        heard = {int(key): Record(**json.loads(text)) for key, text in zip(written, texts, strict=True)}
        return with_hosts(unheard | heard)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Inside, this thread has the store for itself. RuntimeError where another has long waited for it."""
        if not self._lock.acquire(timeout=ANSWER_TIMEOUT.total_seconds()):
            raise RuntimeError("the store does not answer")
        try:
            yield
        finally:
            self._lock.release()

    def tell(self, verdict: str) -> None:
        """Let every rank end with these words; the first, with whom the store may end, waits for them."""
        if not self.verdict:
            self.verdict = verdict
            try:
                with self._asking():
                    self._store.set(VERDICT, verdict)
            except RuntimeError:
                return
        if self.rank == 0:
            pause(SILENT_BEATS * lost_ranks.BEAT_S)

    def _run(self) -> None:
        while not self._over.wait(lost_ranks.BEAT_S):
            self._clock.tick()
            try:
                self._write()
                warning, verdict = self._judge()
                self._answered, self.num_answers = self._clock.s, self.num_answers + 1
            except RuntimeError as error:
                logger.debug("no answer from the store: %s", error)
                warning, verdict = "", self._judge_alone()
            if warning and (self.rank == 0 or "rank 0 " in warning):
                logger.error("%s", warning)
            self.verdict = self.verdict or verdict
            if self.verdict:
                self._end_process()
                return

    def _judge(self) -> tuple[str, str]:
        """(warning that is due, why the launch has to end), each possibly empty.

        RuntimeError without the store.
        """
        warning = verdict = ""
        if self._watch is not None:
            records = self.look()
            warning = self._watch.changes(records, self._clock.s)
            verdict = self._watch.verdict(records, self._clock.s)
        with self._asking():
            if verdict:
                self._store.set(VERDICT, verdict)
            elif self._store.check([VERDICT]):
                verdict = self._store.get(VERDICT).decode()
        return warning, verdict

    def _judge_alone(self) -> str:
        """The same where the store is gone: the launch is over for a rank that does not get on either."""
        still_s, gone_s = self._clock.s - self._since, self._clock.s - self._answered
        over = gone_s >= lost_ranks.WARN_S and still_s >= self._place.patience_s
        return f"{self.no_store} ({self.place})" if over else ""

    def _end_process(self) -> None:
        """Give this process time to end by itself, with its files closed; then end it with the verdict."""
        if not self._over.wait(process_end.GRACE_S):
            process_end.end_process(self.verdict)

    def _write(self) -> None:
        place, since_s = self._place, self._clock.s - self._since
        self._beat += 1
        facts = asdict(place) | {"beat": self._beat, "since_s": since_s, "host": self._host}
        with self._asking():
            self._store.set(str(self.rank), json.dumps(facts))


def pause(seconds: float) -> None:
    """Let the other ranks write."""
    threading.Event().wait(seconds)


class RunningClock:
    """Seconds that this process was running, as far as it ticks: a job that was suspended is not late."""

    def __init__(self) -> None:
        self.s = 0.0
        self._last = time.monotonic()

    def tick(self) -> None:
        now = time.monotonic()
        self.s += min(now - self._last, SILENT_BEATS * lost_ranks.BEAT_S + ANSWER_TIMEOUT.total_seconds())
        self._last = now


@contextmanager
def told_apart(heartbeat: Heartbeat) -> Iterator[None]:
    """Inside, the failure of a collective becomes a LostRankError that names the ranks to blame.

    Any other error becomes this rank's last word, for the others to read.
    """
    heartbeat.start()
    try:
        yield
    except (RuntimeError, LostRankError) as error:
        ours = isinstance(error, LostRankError)
        known = ours or is_collectives(error)
        missing = heartbeat.missing() if known or type(error) is RuntimeError else ""
        if missing and missing != heartbeat.no_store:
            heartbeat.tell(missing)
        heartbeat.end(last_word(LostRankError(missing) if missing else error))
        if not missing and (ours or not known):
            error.add_note(heartbeat.place)
            raise
        own = f"the ranks have lost each other. The collective's own words: {plain_words(error)}"
        lost = LostRankError(missing or own)
        if missing in ("", heartbeat.no_store):  # nobody is named but this one
            lost.add_note(heartbeat.place)
        raise lost from error
    except BaseException as error:
        heartbeat.end(last_word(error))
        error.add_note(heartbeat.place)
        raise
    heartbeat.end(DONE)


def is_collectives(error: BaseException) -> bool:
    """Whether an error comes from torch's communication: most of gloo's are of no type of its own."""
    return isinstance(error, dist.DistError) or any(
        word in str(error) for word in ("gloo", "Connection closed by peer", "ProcessGroup", "NCCL")
    )


def last_word(error: Any) -> str:
    return f"{type(error).__name__}: {one_line(error)}"


def one_line(error: Any, limit: int = 300) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."
