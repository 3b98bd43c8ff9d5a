import json
import tarfile

import pytest

from maskshards.preprocess.__main__ import main
from maskshards.preprocess.bench import (
    LIMIT,
    WITH_PROOF,
    WITHOUT_PROOF,
    BenchResult,
    Chunk,
    Rate,
    bench,
    work,
)
from maskshards.preprocess.errors import BuildError
from maskshards.preprocess.inputs.labels import LabelRule
from maskshards.preprocess.sources.folder import FolderSource


def source_of(root):
    return FolderSource(root, ("a", "b", "c", "d", "e"), LabelRule(5, reduce_zero_label=True))


def test_every_way_is_measured(make_root):
    found = bench(source_of(make_root()), "training", workers=(1,), rounds=1, chunks=2)
    assert found.images == 6
    assert [(rate.way, rate.workers) for rate in found.rates] == [
        (LIMIT, 1),
        (WITHOUT_PROOF, 1),
        (WITH_PROOF, 1),
    ]
    assert all(rate.images_per_s > 0 for rate in found.rates)
    assert all(10 < peak < 2000 for peak in found.peak_mb)


def test_the_limit_holds_every_byte(make_root, tmp_path):
    root = make_root(training=2)
    names = ("training_0000.jpg", "training_0001.jpg")
    spent = work(Chunk(LIMIT, source_of(root), "training", names, str(tmp_path / "limit")))
    assert spent.end_s > spent.start_s
    with tarfile.open(tmp_path / "limit/0.tar") as tar:
        assert tar.getnames() == [
            "training_0000.jpg",
            "training_0000.png",
            "training_0001.jpg",
            "training_0001.png",
        ]
        data = tar.extractfile("training_0001.png").read()
    assert data == (root / "annotations/training/training_0001.png").read_bytes()


def test_ratios_are_to_the_limit_of_as_many_workers():
    rates = [
        Rate(way, count, speed * count, 1.0)
        for count in (1, 2)
        for way, speed in ((LIMIT, 100), (WITHOUT_PROOF, 70), (WITH_PROOF, 50))
    ]
    table = BenchResult(10, tuple(rates), (50.0, 51.0)).to_markdown()
    assert "| build without image proof | 2 | 140 | 0.70 | 1.00 | 1.00 |" in table
    assert "From 1 to 2 workers, build: 2.00 times." in table
    assert "50 MB for one shard" in table


def test_the_command(make_root, capsys):
    root = make_root()
    options = ["--dataset", "ade20k", "--allow-count-mismatch", "--root", str(root), "--splits", "validation"]
    assert main(["bench", *options, "--rounds", "1", "--chunks", "1", "--workers", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 2


def test_nothing_to_measure(make_root):
    with pytest.raises(BuildError, match="nothing to measure"):
        bench(source_of(make_root()), "training", workers=(1,), rounds=0, chunks=1)
