import dataclasses

import pytest

from maskshards.preprocess import shard_task
from maskshards.preprocess.destinations.journal import read_journal
from maskshards.preprocess.destinations.local import LocalDestination
from maskshards.preprocess.errors import BuildError, Reject
from maskshards.preprocess.inputs.images import ImagePolicy
from maskshards.preprocess.inputs.labels import LabelRule
from maskshards.preprocess.shard_task import ShardTask, build_shard
from maskshards.preprocess.sources.folder import FolderSource
from maskshards.shards.format.record import from_members
from maskshards.shards.format.tar import read_members


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

    def write(task, items, stamps, path):
        done = real(task, items, stamps, path)
        data = bytearray(path.read_bytes())
        data[600] ^= 1
        path.write_bytes(data)
        return done

    monkeypatch.setattr(shard_task, "_write", write)
    with pytest.raises(BuildError, match="on reading back"):
        build_shard(task)
    assert task.destination.names() == ()
