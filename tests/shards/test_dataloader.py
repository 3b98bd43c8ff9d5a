"""The Loader where people put it: DataLoader, StatefulDataLoader, Lightning, forks, copies; one stream."""

import copy
import io
import json
import multiprocessing
import os
import pickle
import random
import shutil
import signal
from itertools import islice, product

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from maskshards.shards.errors import SampleError
from maskshards.shards.format.manifest import open_split
from maskshards.shards.loading.evaluation_batches import evaluation_batches
from maskshards.shards.loading.loader import Loader
from maskshards.shards.order.order import World

GLOBAL_BATCH = 8
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # fewer cores than workers


@pytest.fixture(scope="module")
def split(make_split):
    return open_split(str(make_split("frameworks", [5, 1, 0, 9, 4]).folder))  # 19 samples


def rows_of(batch):
    """(position, epoch, key, content) of each sample."""
    rows = []
    for i in range(len(batch)):
        first = sum(h * w for h, w in zip(batch.heights[:i], batch.widths[:i], strict=True))
        last = first + batch.heights[i] * batch.widths[i]
        runs = slice(batch.run_offsets[i], batch.run_offsets[i + 1])
        ends, owners = batch.run_ends[runs] - first, batch.run_owners[runs]
        content = [part.numpy().tobytes() for part in (batch.pixels[3 * first : 3 * last], ends, owners)]
        rows.append(
            (batch.positions[i], batch.epochs[i], batch.keys[i], batch.labels[i], hash(tuple(content)))
        )
    return rows


def rank_loader(split, num_ranks, rank, **settings):
    settings = {"batch_per_rank": 1, "global_batch": GLOBAL_BATCH, "seed": 3, **settings}
    return Loader(split, world=World(rank, num_ranks), **settings)


def through(loader, workers, num_batches=None):
    """The first batches by way of a DataLoader, or of the loader itself where `workers` is None."""
    source = loader if workers is None else DataLoader(loader, batch_size=None, num_workers=workers)
    batches = iter(source)
    try:
        return list(islice(batches, num_batches))
    finally:
        loader.close()
        del batches


def test_one_stream_for_all_ranks_threads_and_workers_resumed_across_them_all(split):
    """Each combination reads one global batch and hands its state, as JSON, to the next one."""
    every = product((1, 2, 4), (1, 3), (None, 0, 1, 2, 3))
    # Forks cost: any two numbers meet, and without workers all three do.
    combinations = [
        (ranks, threads, workers)
        for ranks, threads, workers in every
        if not workers or (ranks + workers + threads // 2) % 2
    ]
    random.Random(5).shuffle(combinations)
    whole = rank_loader(split, 1, 0, end=len(combinations) * GLOBAL_BATCH)
    reference = [row for batch in whole for row in rows_of(batch)]
    found, state = [], None
    for num_ranks, threads, workers in combinations:
        rows, states = [], []
        for rank in range(num_ranks):
            loader = rank_loader(split, num_ranks, rank, threads=threads)
            if state is not None:
                loader.load_state_dict(json.loads(state))
            batches = through(loader, workers, loader.micro_steps)
            rows += [row for batch in batches for row in rows_of(batch)]
            states.append(json.dumps(loader.state_dict(after=batches[-1])))
            if not workers:
                assert loader.state_dict()["position"] == json.loads(states[-1])["position"]
        found += sorted(rows)
        assert len({json.loads(one)["position"] for one in states}) == 1
        state = random.Random(len(found)).choice(states)
    assert found == reference


@pytest.mark.parametrize("workers", [None, 0, 1, 2, 3])
def test_a_pass_ends_and_the_next_one_follows(split, workers):
    loader = Loader(split, batch_per_rank=4, epochs=1)  # 19 samples: five batches
    assert isinstance(loader, IterableDataset)
    source = loader if workers is None else DataLoader(loader, batch_size=None, num_workers=workers)
    assert len(source) == len(loader) == 5
    stream = [batch.keys for batch in Loader(split, batch_per_rank=4, end=60)]
    for epoch in range(3):
        loader.set_epoch(epoch)
        assert [batch.keys for batch in source] == stream[5 * epoch : 5 * epoch + 5]


def test_persistent_workers_follow_the_epoch(split):
    loader = Loader(split, batch_per_rank=4, epochs=1, epoch_end="drop")
    source = DataLoader(loader, batch_size=None, num_workers=2, persistent_workers=True)
    for epoch in (0, 1, 5):
        loader.set_epoch(epoch)
        batches = list(source)
        assert {e for batch in batches for e in batch.epochs} == {epoch}
        assert len(batches) == 4


def test_frameworks_find_no_length_where_there_is_none(split):
    loader = Loader(split, batch_per_rank=4)
    with pytest.raises(TypeError, match="epochs="):
        len(loader)
    assert loader
    assert len(list(islice(DataLoader(loader, batch_size=None), 7))) == 7


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # by torch, used by torchdata
@pytest.mark.parametrize(
    ("workers", "micro_steps"),
    [
        *((0, 1), (0, 2), (1, 1), (1, 2), (2, 2), (3, 2)),
        *(pytest.param(workers, 1, marks=pytest.mark.slow) for workers in (2, 3)),
    ],
)
def test_torchdata_resumes_after_any_batch(split, workers, micro_steps):
    stateful = pytest.importorskip("torchdata.stateful_dataloader")

    def make():
        loader = Loader(split, batch_per_rank=4, global_batch=4 * micro_steps, epochs=2, seed=1)
        return stateful.StatefulDataLoader(loader, batch_size=None, num_workers=workers)

    whole = [batch.positions for batch in make()]
    for taken in (1, 4, len(whole) - 1):
        source = make()
        batches = iter(source)
        begun = [next(batches).positions for _ in range(taken)]
        state = pickle.loads(pickle.dumps(source.state_dict()))
        del batches
        again = make()
        again.load_state_dict(state)
        assert begun + [batch.positions for batch in again] == whole


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda loader: pickle.loads(pickle.dumps(loader))]
)
def test_copies_at_any_time_continue_on_their_own(split, duplicate):
    stream = [batch.positions for batch in Loader(split, batch_per_rank=2, end=12)]
    loader = Loader(split, batch_per_rank=2, end=12)
    before = duplicate(loader)
    batches = iter(loader)
    assert [next(batches).positions for _ in range(2)] == stream[:2]
    during = duplicate(loader)
    assert [batch.positions for batch in during] == stream[2:]
    assert [batch.positions for batch in batches] == stream[2:]
    assert [batch.positions for batch in before] == stream
    assert list(duplicate(loader)) == []


def test_torch_saves_a_used_loader(split):
    loader = Loader(split, batch_per_rank=2, end=8)
    next(iter(loader))
    file = io.BytesIO()
    torch.save(loader, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)  # a loader is no tensor, and this file is our own
    assert [batch.positions[0] for batch in again] == [2, 4, 6]


def test_forked_children_read_on_while_the_parent_does(split):
    loader = Loader(split, batch_per_rank=2, threads=3)
    batches = iter(loader)
    next(batches)

    def child(results):
        results.put([batch.keys for batch in islice(loader, 4)])

    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    children = [context.Process(target=child, args=(results,)) for _ in range(8)]
    for process in children:
        process.start()
    found = [results.get() for _ in children]
    for process in children:
        process.join(600)
        assert process.exitcode == 0
    here = [next(batches).keys for _ in range(4)]
    loader.close()
    assert found == [here] * len(children)


def test_a_program_forked_in_the_middle_of_reading_ends_quietly(split):
    loader = Loader(split, batch_per_rank=2, threads=2)
    batches = iter(loader)
    next(batches)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 7 if len(next(iter(loader)).keys) == 2 else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    loader.close()


def test_an_interrupted_cell_may_be_run_again(split):
    """As in a notebook: a loop left by Ctrl-C keeps its iterator alive in the traceback, and starts again."""
    loader, kept = Loader(split, batch_per_rank=2), []

    def cell():
        for number, batch in enumerate(loader):
            if number == 2:
                raise KeyboardInterrupt
            kept.append(batch.positions)

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt) as caught:
            cell()
    assert caught.value is not None
    assert kept == [
        (0, 1),
        (2, 3),
        (6, 7),
        (8, 9),
    ]  # the batch in hand when it was interrupted was handed out
    loader.close()
    assert "position=12" in repr(loader)


def test_a_state_is_told_after_a_batch(split):
    loader = Loader(split, batch_per_rank=2, global_batch=8, world=World(1, 2))
    batches = list(islice(loader, 5))
    loader.close()
    states = [loader.state_dict(after=batch) for batch in batches]
    assert [(state["position"], state["micro_step"]) for state in states] == [
        (0, 1), (8, 0), (8, 1), (16, 0), (16, 1),
    ]  # fmt: skip
    again = Loader(split, batch_per_rank=2, global_batch=8, world=World(1, 2))
    again.load_state_dict(states[2])
    assert next(iter(again)).positions == batches[3].positions
    other = Loader(split, batch_per_rank=1, global_batch=8, world=World(1, 2))
    other.load_state_dict(states[2])  # another batch size: from the beginning of the step
    assert next(iter(other)).positions == (12,)
    with pytest.raises(ValueError, match="another rank's"):
        Loader(split, batch_per_rank=2, global_batch=8, world=World(0, 2)).state_dict(after=batches[0])


def test_damage_seen_by_a_worker_is_named_or_counted(make_split, tmp_path):
    folder = shutil.copytree(make_split("hurt", [4]).folder, tmp_path / "hurt")
    path = folder / "training-00000.tar"
    data = bytearray(path.read_bytes())
    data[open_split(str(folder)).index(0).entry(2).image_offset + 9] ^= 8
    path.write_bytes(data)
    want = list(Loader(str(folder), batch_per_rank=4, policy="replace", end=12))
    loader = Loader(str(folder), batch_per_rank=4, policy="replace", end=12)
    got = list(DataLoader(loader, batch_size=None, num_workers=2))
    assert [batch.keys for batch in got] == [batch.keys for batch in want]
    assert [batch.num_replaced for batch in got] == [batch.num_replaced for batch in want]
    assert sum(batch.num_replaced for batch in got) >= 3  # in each of three epochs
    source = DataLoader(Loader(str(folder), batch_per_rank=4), batch_size=None, num_workers=1)
    with pytest.raises(SampleError, match=r"training-00000\.tar, sample 'hurt_0_2'"):
        next(iter(source))


@pytest.mark.filterwarnings("ignore")  # Lightning's many
@pytest.mark.parametrize("stopped_at", [2, 5, 7])
def test_lightning_resumes_after_the_last_step(split, tmp_path, stopped_at):
    lightning = pytest.importorskip("lightning")

    class Recorder(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.head, self.keys, self.automatic_optimization = torch.nn.Linear(1, 1), [], True

        def train_dataloader(self):
            return Loader(split, batch_per_rank=4, epochs=1)  # five batches a pass

        def training_step(self, batch, _):
            self.keys.append(batch.keys)
            return self.head(torch.ones(1, 1)).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def fit(steps, checkpoint=None):
        module = Recorder()
        plan = {"max_steps": steps, "max_epochs": -1, "accelerator": "cpu", "default_root_dir": tmp_path}
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = lightning.Trainer(**plan, **quiet, enable_model_summary=False)
        trainer.fit(module, ckpt_path=checkpoint)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        return module.keys

    whole = [batch.keys for batch in Loader(split, batch_per_rank=4, end=4 * 12)]
    assert fit(12) == whole
    assert fit(stopped_at) + fit(12, tmp_path / "last.ckpt") == whole


def first_keys(loader, results):
    results.put([batch.keys for batch in islice(loader, 3)])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_the_stream_is_the_same_however_processes_start(split, method):
    loader = Loader(split, batch_per_rank=4, epochs=1)
    source = DataLoader(loader, batch_size=None, num_workers=2, multiprocessing_context=method)
    stream = list(Loader(split, batch_per_rank=4, epochs=1))
    assert [rows_of(batch) for batch in source] == [rows_of(batch) for batch in stream]
    validation = evaluation_batches(split, batch_per_rank=4)
    source = DataLoader(validation, batch_size=None, num_workers=2, multiprocessing_context=method)
    assert [rows_of(batch) for batch in source] == [rows_of(batch) for batch in validation]
    context = multiprocessing.get_context(method)
    results, batches = context.SimpleQueue(), iter(loader)
    assert next(batches).keys == stream[0].keys
    process = context.Process(target=first_keys, args=(loader, results))
    process.start()
    assert results.get() == [batch.keys for batch in stream[1:4]]
    assert next(batches).keys == stream[1].keys
    process.join(600)
    assert process.exitcode == 0
    loader.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # torch's iterator, at its end
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_worker_that_is_killed_is_an_error_and_the_loader_reads_on(split, number):
    loader = Loader(split, batch_per_rank=2)
    batches = iter(DataLoader(loader, batch_size=None, num_workers=2))
    first = next(batches)
    os.kill(batches._workers[1].pid, number)
    with pytest.raises((RuntimeError, OSError, EOFError)):  # torch's words, by where it notices
        for _ in batches:
            pass
    del batches
    loader.load_state_dict(loader.state_dict(after=first))
    assert next(iter(DataLoader(loader, batch_size=None, num_workers=2))).positions == (2, 3)
