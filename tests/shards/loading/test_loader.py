"""The stream: right pixels and masks, the same for any world and any threads, resumed from one integer."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from itertools import islice

import numpy as np
import pytest
import torch
import webdataset as wds

from maskshards.shards.decode.jpeg import decode_image
from maskshards.shards.format.manifest import open_split
from maskshards.shards.loading.cache import CacheSettings
from maskshards.shards.loading.loader import Loader
from maskshards.shards.order.order import Order, World
from tests.forked import ForkedPython

GLOBAL_BATCH = 24


def live_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("maskshards")]


def take(loader, num_batches):
    with loader:
        return list(islice(loader, num_batches))


def unpack(batch, i):
    """Image i and its (H, W) class map with 65535 for none, straight from the flat buffers."""
    areas = [height * width for height, width in zip(batch.heights, batch.widths, strict=True)]
    first, shape = sum(areas[:i]), (batch.heights[i], batch.widths[i])
    image = batch.pixels[3 * first : 3 * (first + areas[i])].numpy().reshape(*shape, 3)
    classes, start = np.empty(areas[i], np.uint16), 0
    table = np.array([65535, *batch.labels[i]], np.uint16)
    for run in range(batch.run_offsets[i], batch.run_offsets[i + 1]):
        end = int(batch.run_ends[run]) - first
        classes[start:end] = table[batch.run_owners[run]]
        start = end
    assert start == areas[i]
    return image, classes.reshape(shape)


def global_stream(split, num_steps, num_ranks=1, batch_per_rank=None, position=0, **settings):
    """All ranks' samples in global order: (position, key, digest of pixels, runs and labels)."""
    batch_per_rank = batch_per_rank or GLOBAL_BATCH // num_ranks
    settings = {
        "global_batch": GLOBAL_BATCH,
        "batch_per_rank": batch_per_rank,
        "position": position,
        **settings,
    }
    rows = []
    for rank in range(num_ranks):
        loader = Loader(split, world=World(rank, num_ranks), **settings)
        for batch in take(loader, num_steps * loader.micro_steps):
            for i in range(len(batch)):
                image, classes = unpack(batch, i)
                content = (hash(image.tobytes()), hash(classes.tobytes()))
                rows.append((batch.positions[i], batch.epochs[i], batch.keys[i], *content))
    return sorted(rows)


@pytest.fixture(scope="module")
def made(make_split):
    return make_split("stream", [5, 1, 0, 9, 4])


@pytest.fixture(scope="module")
def split(made):
    return open_split(str(made.folder))


def test_batches_hold_the_source_pixels_and_masks(made, split):
    for batch in take(Loader(split, batch_per_rank=4), 6):
        assert batch.pixels.dtype == batch.run_owners.dtype == torch.uint8
        assert batch.run_ends.dtype == torch.int32
        assert batch.run_ends[-1] * 3 == len(batch.pixels)
        for i, key in enumerate(batch.keys):
            want_image, want_classes = made.truth[key]
            image, classes = unpack(batch, i)
            assert np.array_equal(image, want_image)
            assert np.array_equal(classes, want_classes)
            assert batch.labels[i] == tuple(np.unique(want_classes[want_classes != 65535]).tolist())
            assert (batch.heights[i], batch.widths[i]) == want_classes.shape


def test_the_stream_follows_the_order(made, split):
    stream = global_stream(split, 3)
    order = Order(split.manifest.shard_samples, 0, GLOBAL_BATCH)
    shards, indices = order.samples(np.arange(3 * GLOBAL_BATCH))
    keys = [made.keys[shard][index] for shard, index in zip(shards, indices, strict=True)]
    assert [row[2] for row in stream] == keys
    assert [row[0] for row in stream] == list(range(3 * GLOBAL_BATCH))
    assert [row[1] for row in stream] == [position // 19 for position in range(3 * GLOBAL_BATCH)]


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4, 6, 8])
def test_any_world_and_any_threads_give_the_same_stream(split, num_ranks):
    reference = global_stream(split, 2, seed=5)
    for threads in (1, 2, 5):
        assert global_stream(split, 2, num_ranks, seed=5, threads=threads) == reference
    assert global_stream(split, 2, num_ranks, batch_per_rank=1, seed=5, prefetch_batches=1) == reference


def test_another_seed_is_another_stream(split):
    assert [row[2] for row in global_stream(split, 2, seed=1)] != [
        row[2] for row in global_stream(split, 2, seed=2)
    ]


def test_resume_on_other_worlds_continues_exactly(split):
    reference = global_stream(split, 6, seed=3)
    parts, position = [], 0
    for num_ranks in (4, 2, 3):
        parts += global_stream(split, 2, num_ranks, seed=3, position=position)
        loader = Loader(
            split,
            batch_per_rank=GLOBAL_BATCH // num_ranks,
            global_batch=GLOBAL_BATCH,
            world=World(0, num_ranks),
            seed=3,
            position=position,
        )
        take(loader, 2)
        position = loader.state_dict()["position"]
    assert parts == reference


def test_state_counts_whole_steps_that_were_handed_out(split):
    with Loader(split, batch_per_rank=2, global_batch=6) as loader:
        batches, seen = iter(loader), []
        for _ in range(7):
            next(batches)
            seen.append(loader.state_dict()["position"])
        assert seen == [0, 0, 6, 6, 6, 12, 12]
        state = loader.state_dict()
        again = Loader(split, batch_per_rank=3, global_batch=6)
        again.load_state_dict(state)
        assert take(again, 1)[0].positions == (12, 13, 14)
        assert loader.state_dict(position=6)["position"] == 6


def test_a_new_iterator_starts_after_the_last_whole_step(split):
    with Loader(split, batch_per_rank=2, global_batch=4) as loader:
        assert [batch.positions for batch in islice(loader, 3)] == [(0, 1), (2, 3), (4, 5)]
        assert next(iter(loader)).positions == (4, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fingerprint": "0"}, "fingerprint was '0'"),
        ({"seed": 9}, "seed was 9, here it is 0"),
        ({"global_batch": 8}, "global_batch was 8, here it is 4"),
        ({"order_version": 0}, "order_version was 0"),
        ({"epoch_end": "drop"}, "epoch_end was 'drop', here it is 'carry'"),
        ({"position": 3}, "position 3 is not a multiple of global_batch 4"),
        ({"position": 40.7}, r"the state's position is 40\.7; expected a whole number"),
        ({"position": "40"}, "the state's position is '40'; expected a whole number"),
        ({"position": None}, "the state's position is None"),
        ({"micro_step": 2}, "the state's micro_step is 2; expected a whole number from 0 to 1"),
    ],
)
def test_a_state_of_another_stream_is_refused(split, change, message):
    loader = Loader(split, batch_per_rank=4)
    with pytest.raises(ValueError, match=message):
        loader.load_state_dict({**loader.state_dict(), **change})


@pytest.mark.parametrize(
    "name", ["batch_per_rank", "global_batch", "seed", "position", "end", "epochs", "threads"]
)
@pytest.mark.parametrize("value", [-4, 4.0, "4", 1 << 70, True, float("nan")])
def test_what_is_no_number_of_that_kind_is_named(split, name, value):
    with pytest.raises(ValueError, match=rf"^{name}.* is '?{value}"):
        Loader(split, **{"batch_per_rank": 4, name: value})


def test_no_thread_outlives_the_loader(split):
    loader = Loader(split, batch_per_rank=2, threads=3)
    next(iter(loader))
    loader.close()
    assert not live_threads()
    for number, _ in enumerate(Loader(split, batch_per_rank=2)):
        if number == 2:
            break
    for thread in live_threads():  # those of a dropped iterator end by themselves, after the batch in hand
        thread.join(600)
    assert not live_threads()


def test_user_stages_run_on_batches(split):
    stages = (wds.map(lambda batch: batch.keys), wds.slice(2))
    plain = [batch.keys for batch in take(Loader(split, batch_per_rank=3), 2)]
    assert list(Loader(split, batch_per_rank=3, stages=stages)) == plain


def test_waiting_is_measured(split):
    loader = Loader(split, batch_per_rank=2)
    take(loader, 3)
    assert loader.wait_ms > 0


def test_the_first_batch_waits_for_few_others(made, monkeypatch):
    """However long the data set is, what is decoded before a first batch is what may be read ahead."""
    decoded = []

    def counted(*given):
        decoded.append(given)
        return decode_image(*given)

    monkeypatch.setattr("maskshards.shards.loading.batch_reader.decode_image", counted)
    take(Loader(str(made.folder), batch_per_rank=8, threads=2, prefetch_batches=2), 1)
    assert 8 <= len(decoded) <= 8 * (1 + 2 + 2)  # itself, those that wait, one under way in each thread


@pytest.mark.parametrize(
    "settings",
    [
        {"threads": 0},
        {"threads": 10**9},
        {"prefetch_batches": 0},
        {"prefetch_batches": 10**9},
        {"epochs": 0},
        {"policy": "ignore"},
        {"position": 1},
        {"global_batch": 5},
    ],
)
def test_nonsense_settings_are_refused(split, settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Loader(split, batch_per_rank=2, **settings)


def test_epochs_may_end_with_batches(split):
    loader = Loader(split, batch_per_rank=4, epoch_end="drop", end=32)  # 19 samples: four batches an epoch
    assert [set(batch.epochs) for batch in loader] == [{0}] * 4 + [{1}] * 4


def test_a_stream_may_have_an_end(split):
    loader = Loader(split, batch_per_rank=2, global_batch=4, position=4, end=12)
    assert [batch.positions[0] for batch in loader] == [4, 6, 8, 10]
    assert (loader.position, list(loader)) == (12, [])
    with pytest.raises(ValueError, match="end 5 is not a multiple"):
        Loader(split, batch_per_rank=2, global_batch=4, end=5)


def test_nodes_fetch_a_cold_epoch_about_once(make_split, serve, tmp_path):
    """Bytes counted at the server, for 4 nodes reading ranges and for 4 nodes with a cache each."""
    made = make_split("egress", [6] * 16)
    size = sum(shard.bytes for shard in made.manifest.shards)
    for caching in (False, True):
        server, keys = serve(made.folder), []
        for rank in range(4):
            cache = CacheSettings(tmp_path / f"node{rank}") if caching else None
            loader = Loader(
                server.url, batch_per_rank=2, global_batch=24, world=World(rank, 4), end=96, cache=cache
            )
            keys += [key for batch in loader for key in batch.keys]
        assert sorted(keys) == sorted(made.truth)
        sent = sum(count for name, count in server.bytes_sent.items() if name.endswith(".tar"))
        assert sent <= size * (1.05 * (1 + 3 / 16) if caching else 1.02)
        assert sent > 0.5 * size


def test_images_may_be_decoded_by_the_consumer(split):
    def decode(batch):
        pixels = []
        for i, image_format in enumerate(batch.image_formats):
            start, end = batch.encoded_offsets[i : i + 2]
            out = np.empty((batch.rest.heights[i], batch.rest.widths[i], 3), np.uint8)
            decode_image(batch.encoded[start:end].numpy().tobytes(), image_format, out)
            pixels.append(torch.from_numpy(out).flatten())
        return dataclasses.replace(batch.rest, pixels=torch.cat(pixels))

    for a, b in zip(
        take(Loader(split, batch_per_rank=5), 4),
        take(Loader(split, batch_per_rank=5, decode=decode), 4),
        strict=True,
    ):
        assert (a.keys, a.positions, a.labels, a.run_offsets) == (
            b.keys,
            b.positions,
            b.labels,
            b.run_offsets,
        )
        assert a.pixels.equal(b.pixels)
        assert a.run_ends.equal(b.run_ends)


INTERRUPTED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
from maskshards.shards.format.manifest import open_split
from maskshards.shards.loading.cache import CacheSettings
from maskshards.shards.loading.loader import Loader
split = open_split(sys.argv[1])
loader = Loader(split, batch_per_rank=4, cache=CacheSettings(sys.argv[2]) if len(sys.argv) > 2 else None)
try:
    next(iter(loader))
except KeyboardInterrupt:
    assert split.store.size("manifest.json") > 0  # what was handed in goes on
    print("interrupted", flush=True)
"""


@pytest.mark.parametrize("with_cache", [False, True])
def test_an_interrupt_ends_the_wait_for_a_silent_server(make_split, serve, tmp_path, with_cache):
    made = make_split("silent", [4])
    server = serve(made.folder)
    server.faults["training-00000.tar"] = ["silent"] * 99  # for an hour each
    words = [server.url, *([str(tmp_path / "cache")] if with_cache else [])]
    with ForkedPython(["-c", INTERRUPTED, *words], env=dict(os.environ)) as program:
        try:
            assert server.waiting.wait(600)
            program.send_signal(signal.SIGINT)
            assert program.communicate(timeout=600) == ("interrupted\n", "")
        finally:
            program.kill()
    assert program.returncode == 0


def test_closing_one_loader_of_a_split_leaves_the_others_reading(make_split, serve):
    made = make_split("shared", [4, 4])
    split = open_split(serve(made.folder).url)
    with Loader(split, batch_per_rank=2, end=8) as one, Loader(split, batch_per_rank=2, end=8) as two:
        first, second = iter(one), iter(two)
        next(first)
        got = [next(second).keys]
        one.close()
        got += [batch.keys for batch in second]
    with Loader(made.folder, batch_per_rank=2, end=8) as loader:
        assert got == [batch.keys for batch in loader]
    split.close()


NEVER_CLOSED = """
import sys
from maskshards.shards.loading.loader import Loader
loaders = [Loader(place, batch_per_rank=2) for place in sys.argv[1:]]
batches = [iter(loader) for loader in loaders]
for one in batches:
    next(one)
print("end")
"""


def test_a_program_that_ends_with_an_open_loader_says_nothing(make_split, serve):
    made = make_split("open", [4, 4])
    command = [sys.executable, "-c", NEVER_CLOSED, made.folder, serve(made.folder).url]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


def test_leaving_a_loop_waits_for_no_read(split):
    goes_on, left = threading.Event(), []

    def transform(image, classes, random):
        if len(left) == 4:  # the first batch is there
            assert goes_on.wait(600)
        else:
            left.append(image)
        return image, classes

    with Loader(split, batch_per_rank=4, threads=1, transform=transform) as loader:
        for _ in loader:
            break
        assert not goes_on.is_set()
        goes_on.set()
    assert live_threads() == []


def test_nothing_runs_while_an_iterator_is_dropped_where_an_interrupt_would_be_lost(split):
    loader, calls = Loader(split, batch_per_rank=4), []
    batches = iter(loader)
    next(batches)
    sys.setprofile(lambda frame, event, _: calls.append((event, frame.f_code.co_name)))
    del batches
    sys.setprofile(None)
    assert {name for event, name in calls if event == "call"} <= {"_batches"}  # the generator's own end
    loader.close()
    assert live_threads() == []


LATE = {"pyarrow", "pandas", "urllib3", "fsspec", "transformers", "torchvision", "sympy", "torch._dynamo"}


def test_importing_the_loader_loads_no_more_of_others_than_torch_itself():
    """Each of them costs 0.1 to 2 s, and is loaded where it is used."""
    program = "import sys, torch, maskshards\nbefore = set(sys.modules)\nmaskshards.Loader\n"
    program += f"late = {LATE!r} & (set(sys.modules) - before)\nsys.exit(str(late) if late else 0)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_batch_that_is_kept_is_not_written_over_by_those_that_use_dropped_memory(made, monkeypatch):
    monkeypatch.setattr("maskshards.shards.loading.buffers.SMALLEST", 1)
    settings = {"batch_per_rank": 3, "end": 90, "threads": 3}

    def digest(batch):
        return batch.keys, batch.pixels.sum().item(), batch.run_ends.tolist(), batch.run_owners.tolist()

    with Loader(made.folder, **settings) as loader:
        dropped = [digest(batch) for batch in loader]
    with Loader(made.folder, **settings) as loader:
        some = [(batch, digest(batch)) for number, batch in enumerate(loader) if number % 2]
    assert [digest(batch) for batch, _ in some] == [then for _, then in some] == dropped[1::2]


@pytest.mark.parametrize(
    "both",
    [
        lambda loader: [1 for _ in loader for _ in loader],
        lambda loader: list(zip(loader, loader, strict=False)),
        lambda loader: [next(batches) for batches in reversed([iter(loader), iter(loader)])],
    ],
)
def test_two_iterations_of_one_loader_at_a_time_are_an_error_and_no_short_epoch(made, both):
    with Loader(made.folder, batch_per_rank=4, epochs=1) as loader:
        with pytest.raises(RuntimeError, match=r"use copy\.copy\(loader\)"):
            both(loader)
        assert list(loader)
        batches = iter(loader)
        next(batches)
        loader.close()
        assert list(batches) == []


@pytest.mark.parametrize("epoch", ["1", 1.5, None, -1])
def test_an_epoch_that_is_none_moves_nothing(made, epoch):
    with Loader(made.folder, batch_per_rank=4, epochs=1) as loader:
        with pytest.raises(ValueError, match=r"epoch is .*; expected a whole number"):
            loader.set_epoch(epoch)
        assert loader.position == 0


@pytest.mark.parametrize("state", [None, [], "state"])
def test_a_state_that_is_none_is_named(made, state):
    with Loader(made.folder, batch_per_rank=4) as loader, pytest.raises(ValueError, match="the state is"):
        loader.load_state_dict(state)


def test_numpys_integers_leave_no_trace_in_a_state(made):
    one = np.int64(1)
    with Loader(
        made.folder, batch_per_rank=one * 2, world=World(one, one * 2), seed=one, position=0 * one
    ) as loader:
        assert json.loads(json.dumps(loader.state_dict()))["num_ranks"] == 2
    with pytest.raises(ValueError, match=r"world is \(0, 2\); expected World"):
        Loader(made.folder, batch_per_rank=2, world=(0, 2))
