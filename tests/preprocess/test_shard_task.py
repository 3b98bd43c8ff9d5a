import dataclasses
import errno
import struct

import pytest

from maskshards.preprocess import shard_task
from maskshards.preprocess.destinations.journal import read_journal
from maskshards.preprocess.destinations.local import LocalDestination
from maskshards.preprocess.errors import BuildError, Reject
from maskshards.preprocess.inputs.image_policy import ImagePolicy
from maskshards.preprocess.inputs.labels import LabelRule
from maskshards.preprocess.shard_task import ShardTask, build_shard
from maskshards.preprocess.sources.folder import FolderSource
from maskshards.shards.format.record import from_members
from maskshards.shards.format.tar import TarWriter, read_members


@pytest.fixture
def task(make_root, tmp_path):
    root = make_root(training=3)
    source = FolderSource(root, ("a", "b", "c", "d", "e"), LabelRule(5, reduce_zero_label=True))
    names = source.listing("training").names
    place = LocalDestination(tmp_path / "out")
    return ShardTask(source, place, "training", ImagePolicy(), "plan", "training-00000.tar", names)


def test_a_shard_is_made_once(task):
    first = build_shard(task)
    assert (first.planned, first.rejects, first.reused) == (3, 0, False)
    assert build_shard(task).reused
    assert task.destination.names() == (".build/training-00000.tar.json", "training-00000.tar")
    journal = read_journal(task.destination, task.shard_name)
    assert journal.shard.sha256 == task.destination.sha256(task.shard_name)
    with open(task.destination.folder / task.shard_name, "rb") as file:
        records = [from_members(read_members(file, entry)) for entry in journal.entries]
    assert [record.key + ".jpg" for record in records] == list(task.names)
    assert records[1].image == (task.source.root / "images/training" / task.names[1]).read_bytes()


def test_another_plan_or_other_files_make_it_again(task):
    build_shard(task)
    assert not build_shard(dataclasses.replace(task, plan="other")).reused
    assert build_shard(dataclasses.replace(task, plan="other")).reused
    (task.source.root / "annotations/training/training_0001.png").touch()
    assert not build_shard(dataclasses.replace(task, plan="other")).reused


def test_a_shard_that_lost_samples_is_tried_again(task):
    image = task.source.root / "images/training/training_0001.jpg"
    good = image.read_bytes()
    image.write_bytes(b"")
    outcome = build_shard(task)
    assert (outcome.planned, outcome.rejects) == (3, 1)
    journal = read_journal(task.destination, task.shard_name)
    reason = "the image file is empty (0 bytes)"
    assert journal.rejects == (Reject("images/training/training_0001.jpg", reason),)
    assert len(journal.entries) == 2
    image.write_bytes(good)
    again = build_shard(task)
    assert (again.rejects, again.reused) == (0, False)


def test_a_disk_that_returns_other_bytes_is_noticed(task, monkeypatch):
    real = shard_task._write

    def write(task, samples, path):
        done = real(task, samples, path)
        data = bytearray(path.read_bytes())
        data[600] ^= 1
        path.write_bytes(data)
        return done

    monkeypatch.setattr(shard_task, "_write", write)
    with pytest.raises(BuildError, match="on reading back"):
        build_shard(task)
    assert task.destination.names() == ()


def failing(real, error):
    """`read_records` that fails on the second sample."""

    def read(source, item, stamp, policy):
        if item.key == "training_0001":
            raise error
        return real(source, item, stamp, policy)

    return read


@pytest.mark.parametrize(
    "error",
    [ZeroDivisionError("odd"), struct.error("odd"), TypeError("odd"), OSError("odd"), KeyError("odd")],
)
def test_whatever_a_decoder_raises_refuses_one_sample(task, monkeypatch, error):
    monkeypatch.setattr(shard_task, "read_records", failing(shard_task.read_records, error))
    assert build_shard(task).rejects == 1
    (reject,) = read_journal(task.destination, task.shard_name).rejects
    assert reject.name == "images/training/training_0001.jpg"
    assert f"it cannot be read ({type(error).__name__}: " in reject.reason
    assert "odd" in reject.reason


@pytest.mark.parametrize("error", [OSError(errno.ESTALE, "Stale file handle"), MemoryError(), TimeoutError()])
def test_what_says_nothing_of_the_sample_ends_the_build_and_names_it(task, monkeypatch, error):
    monkeypatch.setattr(shard_task, "read_records", failing(shard_task.read_records, error))
    with pytest.raises(BuildError, match=r"images/training/training_0001\.jpg.*the same command goes on"):
        build_shard(task)
    assert task.destination.names() == ()


def test_a_destination_that_fails_is_no_fault_of_a_sample(task, monkeypatch):
    def full(writer, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(TarWriter, "_write", full)
    with pytest.raises(OSError, match=r"training-00000\.tar cannot be written: No space left"):
        build_shard(task)


def test_facts_that_are_no_json_refuse_the_sample_before_a_byte_is_written(task):
    class Odd(FolderSource):
        def facts(self, item):
            return {"score": float("nan")} if "0001" in item.key else {}

    fields = {field.name: getattr(task.source, field.name) for field in dataclasses.fields(task.source)}
    outcome = build_shard(dataclasses.replace(task, source=Odd(**fields)))
    assert (outcome.rejects, outcome.planned) == (1, 3)


def test_a_name_that_cannot_be_a_key_is_refused(task):
    outcome = build_shard(dataclasses.replace(task, names=("/b.jpg", *task.names)))
    assert (outcome.rejects, outcome.planned) == (1, 4)
    (reject,) = read_journal(task.destination, task.shard_name).rejects
    assert "empty part between slashes" in reject.reason
