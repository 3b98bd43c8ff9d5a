"""The stream over a network that spoils requests in every way: the sequence equals the local one.

Which request fails, and how, is a function of what is asked for and how often it was, so that no thread can
change it.
"""

import hashlib
import logging
import time
from collections import Counter
from itertools import count

import pytest

from maskshards.shards.format import manifest
from maskshards.shards.loading.cache import CacheSettings
from maskshards.shards.loading.loader import Loader
from maskshards.shards.storage.http import HttpStore
from maskshards.shards.storage.retry import RetrySettings

log = logging.getLogger(__name__)

SOAK_S = 300.0
KINDS = ("reset", "cut", "flip", "500", "busy 0", "stall", "short length", "other range")
RESTLESS = RetrySettings(attempts=12, first_delay_s=0.001, longest_delay_s=0.5, stall_s=0.2)
BATCHES = 40  # of one loader


def faults(rate, seed):
    """`choose` of a server that spoils this fraction of requests by each of KINDS, and its counts."""
    asked, spoiled = Counter(), Counter()

    def choose(name, wanted):
        asked[name, wanted] += 1
        words = f"{seed} {name} {wanted} {asked[name, wanted]}"
        place = int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest()) / 2**64 / rate
        kind = KINDS[int(place)] if place < len(KINDS) else ""
        spoiled[kind] += 1
        return kind

    return choose, spoiled


def rows_of(batch):
    return [batch.positions, batch.keys, batch.labels] + [
        hashlib.sha256(flat.numpy()).hexdigest() for flat in (batch.pixels, batch.run_ends, batch.run_owners)
    ]


def lives(split, first, settings):
    """Rows of the batches of loaders that each go on where the last one stopped."""
    for life in first:
        start = life * BATCHES * 4
        words = {"batch_per_rank": 4, "seed": 3, "position": start, "end": start + BATCHES * 4}
        with Loader(split, threads=2, **words, **settings) as loader:
            yield from map(rows_of, loader)


@pytest.fixture
def rough(serve, make_split, monkeypatch):
    """rough(rate, seed) -> (the split's folder, its URL, counts of what was done to requests)."""

    def start(rate, seed):
        folder = make_split("rough", [5, 0, 9, 7, 1, 12, 6, 8]).folder
        server = serve(folder)
        server.choose, spoiled = faults(rate, seed)
        return folder, server.url, spoiled

    honest = manifest.open_store

    def opened(place):
        return HttpStore(place, RESTLESS) if str(place).startswith("http") else honest(place)

    monkeypatch.setattr(manifest, "open_store", opened)
    return start


# Whole shards take fewer requests, and how many depends on which copies make room for others.
@pytest.mark.parametrize(("cached", "rate", "num_kinds"), [(False, 0.02, len(KINDS)), (True, 0.05, 2)])
def test_two_loaders_over_a_rough_network_see_the_local_stream(rough, cached, rate, num_kinds, tmp_path):
    folder, url, spoiled = rough(rate, seed=1)
    cache = CacheSettings(tmp_path / "cache", 100_000) if cached else None
    found = list(lives(url, range(2), {"cache": cache}))
    assert found == list(lives(folder, range(2), {}))
    assert len(set(spoiled) - {""}) >= num_kinds


@pytest.mark.slow
@pytest.mark.parametrize("cached", [False, True])
def test_minutes_of_faults_leave_the_stream_as_it_is(rough, cached, tmp_path):
    folder, url, spoiled = rough(0.01, seed=2)
    cache = CacheSettings(tmp_path / "cache", 100_000) if cached else None
    until, num_batches = time.monotonic() + SOAK_S, 0
    remote, local = lives(url, count(), {"cache": cache}), lives(folder, count(), {})
    for found, expected in zip(remote, local, strict=True):
        assert found == expected
        num_batches += 1
        if time.monotonic() > until:
            break
    assert set(spoiled) == {"", *KINDS}
    log.info("%d batches, requests: %s", num_batches, dict(spoiled))
