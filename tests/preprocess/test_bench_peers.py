import importlib.util
import json
import tarfile

import pytest

from maskshards.preprocess import bench_peers
from maskshards.preprocess.__main__ import main
from maskshards.preprocess.bench_peers import OURS, WAYS, PeerResult, PeerTime
from maskshards.preprocess.errors import BuildError
from maskshards.preprocess.inputs.labels import LabelRule
from maskshards.preprocess.sources.folder import FolderSource
from maskshards.shards.format.manifest import open_split


@pytest.fixture
def source(make_root):
    return FolderSource(
        make_root(training=4), ("a", "b", "c", "d", "e"), LabelRule(5, reduce_zero_label=True)
    )


def test_ours_is_a_whole_build(source, tmp_path):
    names = source.listing("training").names
    WAYS[OURS][0](source, "training", names, str(tmp_path / "out"))
    assert open_split(tmp_path / "out/training").manifest.num_samples == 4


def test_webdataset_copies_the_bytes(source, tmp_path):
    pytest.importorskip("webdataset")
    names = source.listing("training").names
    WAYS["webdataset.ShardWriter"][0](source, "training", names, str(tmp_path / "out"))
    with tarfile.open(tmp_path / "out/00000.tar") as tar:
        assert len(tar.getnames()) == 8
        data = tar.extractfile("training_0001.jpg").read()
    assert data == (source.root / "images/training/training_0001.jpg").read_bytes()


def test_the_command_tells_what_is_installed_and_what_is_not(make_root, capsys, monkeypatch):
    root = make_root(training=2)
    known = {OURS: WAYS[OURS], "another": (None, "no_such_package_anywhere")}
    monkeypatch.setattr(bench_peers, "WAYS", known)
    words = ["bench", "--dataset", "folder", "--root", str(root), "--classes", str(root / "classes.txt")]
    assert main([*words, "--reduce-zero-label", "--peers", "--rounds", "1", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["images"] == 2
    assert [entry["way"] for entry in facts["times"]] == [OURS]
    assert facts["missing"] == ["no_such_package_anywhere"]
    assert importlib.util.find_spec("no_such_package_anywhere") is None


def test_a_way_that_fails_says_why(source, monkeypatch):
    monkeypatch.setattr(bench_peers, "WAYS", {"unknown way": (None, "maskshards")})
    with pytest.raises(BuildError, match=r"unknown way failed: (?s:.*)KeyError"):
        bench_peers.bench_peers(source, "training", 1)
    with pytest.raises(BuildError, match="0 rounds"):
        bench_peers.bench_peers(source, "training", 0)


def test_the_table():
    text = PeerResult(100, (PeerTime(OURS, 0.5, 2.0, 1.5),), ("litdata",)).to_markdown()
    assert f"| {OURS} | 0.5 | 2.0 | 1.5 | 50 |" in text
    assert "Not installed: litdata." in text
