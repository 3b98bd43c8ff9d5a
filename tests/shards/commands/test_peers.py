"""Each peer that is installed delivers the same pixels and labels as the shards hold."""

import numpy as np
import pytest

from maskshards.shards.commands import peers
from maskshards.shards.commands.baselines import write_loose
from maskshards.shards.commands.bench import as_text
from maskshards.shards.format.manifest import open_split


def content(pairs):
    return sorted((np.asarray(pixels).tobytes(), np.asarray(labels).tobytes()) for pixels, labels in pairs)


@pytest.mark.filterwarnings("ignore")  # theirs
@pytest.mark.parametrize("name", peers.PEERS)
def test_a_peer_delivers_the_same_samples(make_split, tmp_path, name):
    if not peers.is_installed(name):
        pytest.skip(f"{name} is not installed: pip install maskshards[bench]")
    split = open_split(make_split("peers", [4, 2]).folder)
    (tmp_path / "loose").mkdir()
    (tmp_path / name).mkdir()
    paths = write_loose(split, tmp_path / "loose")
    job = peers.Job(paths, tmp_path / name, 3, 1)
    if name in peers.WRITERS:
        peers.WRITERS[name](job)
    batches = iter(peers.PEERS[name](job))
    found = [pair for _ in range(2) for pair in next(batches)]
    if hasattr(batches, "close"):
        batches.close()
    expected = content(map(peers.read_pair, paths))
    assert set(content(found)) <= set(expected)
    if name != "webdataset":  # which repeats its shuffled shards without end
        assert content(found) == expected


def test_labels_of_loose_files_are_those_of_the_shards(make_split, tmp_path):
    made = make_split("own", [3])
    for path in write_loose(open_split(made.folder), tmp_path):
        pixels, labels = peers.read_pair(path)
        image, classes = made.truth[path.stem]
        np.testing.assert_array_equal(pixels, image)
        np.testing.assert_array_equal(labels.astype(int), np.where(classes == 65535, 0, classes + 1))


def test_the_table_names_the_best_and_the_absent():
    figures = {
        "maskshards": {"cpu_ms": 1.0, "wall_ms": 0.5},
        "grain": {"cpu_ms": 3.0, "wall_ms": 1.0},
        "spdl": {"cpu_ms": 2.5, "wall_ms": 2.0},
    }
    facts = {"batches": 4, "batch": 8, "threads": 2, "crop": 512, "photometric": "none"}
    text = as_text({**facts, "peers": figures, "absent": {"litdata": "not installed"}})
    assert "2.00 x the images a second, 0.40 of the CPU an image" in text
    assert text.endswith("litdata took no part: not installed")


@pytest.mark.slow
def test_peers_that_fail_are_named(make_split, monkeypatch):
    monkeypatch.setattr(peers, "PEERS", {"json": open, "no_such_package_anywhere": open})
    split = open_split(make_split("failing", [4]).folder)
    figures, absent = peers.compare_peers(split, 2, 2, 1, 1)
    assert set(figures) == {"maskshards"}
    assert set(absent) == {"json", "no_such_package_anywhere"}
    assert absent["json"].startswith("TypeError")
