"""Others read the tars without a line of ours: Hugging Face datasets, stock webdataset, tar."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import zstandard

from maskshards.shards.format.manifest import open_split
from maskshards.shards.format.rle import decode_label_map, unpack_runs
from maskshards.shards.format.tar import read_members
from maskshards.shards.storage.open_store import open_store

READ = """
import datasets, json, sys
tars = {"train": sys.argv[1:]}
for row in datasets.load_dataset("webdataset", data_files=tars, split="train", streaming=True):
    image = row["jpg"]
    facts = [row["__key__"], image.convert("RGB").size, row["json"]["class_ids"], row["rle.zst"].hex()]
    print(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def made(make_split):
    return make_split("foreign", [3, 4], formats=["jpg"])  # datasets refuses tars that mix formats


@pytest.mark.slow
def test_hugging_face_datasets_streams_the_tars(made, tmp_path):
    pytest.importorskip("datasets", reason="datasets is not installed: pip install datasets")
    shards = sorted(str(path) for path in made.folder.glob("*.tar"))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", READ, *shards], env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == [key for keys in made.keys for key in keys]
    for key, (width, height), class_ids, payload in rows:
        image, class_map = made.truth[key]
        assert image.shape == (height, width, 3)
        assert class_ids == np.unique(class_map[class_map != 65535]).tolist()
        data = bytes.fromhex(payload)
        if data[:4] == b"MSR1":  # newer versions of datasets decompress .zst members by themselves
            data = zstandard.ZstdCompressor(level=10).compress(data)
        assert np.array_equal(decode_label_map(unpack_runs(data, height, width), height, width), class_map)


def test_plain_tar_lists_and_extracts(made, tmp_path):
    path = made.folder / "training-00001.tar"
    names = subprocess.run(["tar", "-tf", path], capture_output=True, text=True, check=True).stdout.split()
    subprocess.run(["tar", "-xf", path, "-C", tmp_path], check=True)
    split = open_split(str(made.folder))
    store, index, wanted = open_store(made.folder), split.index(1), []
    for row in range(len(index)):
        for name, data in read_members(lambda o, s: store.read(path.name, o, s), index.entry(row)):
            wanted.append(name)
            assert (tmp_path / name).read_bytes() == data
    assert names == wanted
