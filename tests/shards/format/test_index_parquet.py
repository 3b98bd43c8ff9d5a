"""The index file: read by pyarrow alone, a row group a shard, damage named, one question a shard remotely."""

import io
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from maskshards.shards.errors import ManifestError
from maskshards.shards.format.index_parquet import IndexFile, IndexReader, write_index
from maskshards.shards.storage.open_store import open_store


@pytest.fixture(scope="module")
def index_file(tmp_path_factory, make_rows):
    path = tmp_path_factory.mktemp("index") / "samples.parquet"
    shards, entries = make_rows([3, 0, 1, 40])
    return path, write_index(path, shards, iter(entries)), entries


def test_rows_come_back_in_any_order(index_file):
    path, shards, entries = index_file
    reader = IndexReader(str(path), shards)
    for number in (3, 0, 2, 1, 3):
        rows = reader.read(number)
        assert [rows.entry(place) for place in range(len(rows))] == entries[number]
        assert [tuple(ids) for ids in rows.class_ids] == [entry.class_ids for entry in entries[number]]
        assert [tuple(areas) for areas in rows.areas] == [entry.areas for entry in entries[number]]


def test_plain_parquet_readers_see_one_row_group_a_shard(index_file):
    path, _, entries = index_file
    file = pq.ParquetFile(path)
    assert [file.metadata.row_group(n).num_rows for n in range(4)] == [3, 0, 1, 40]
    table = file.read().to_pylist()
    assert [row.pop("shard") for row in table] == [0] * 3 + [2] + [3] * 40
    assert table == [entry.to_json() for rows in entries for entry in rows]


def test_the_same_rows_give_the_same_bytes(index_file, tmp_path):
    path, shards, entries = index_file
    assert write_index(tmp_path / "again", shards, entries) == shards
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_an_index_of_other_shards_is_refused(index_file):
    path, shards, _ = index_file
    with pytest.raises(ManifestError, match="4 row groups"):
        IndexReader(str(path), shards[:3])
    other = (replace(shards[0], index_sha256=shards[2].index_sha256), *shards[1:])
    with pytest.raises(ManifestError, match="its rows have sha256"):
        IndexReader(str(path), other).read(0)
    with pytest.raises(ManifestError, match="40 rows"):
        IndexReader(str(path), (*shards[:3], replace(shards[3], samples=39))).read(3)


@pytest.mark.parametrize("where", [0, 1, 0.3, 0.6, 0.9, 0.999])
def test_a_file_cut_short_is_one_typed_error(index_file, where):
    path, shards, _ = index_file
    data = path.read_bytes()
    cut = data[: int(where * (len(data) - 1))]
    with pytest.raises(ManifestError, match=r"samples\.parquet"):
        IndexReader(io.BytesIO(cut), shards).read(0)


def test_bit_flips_are_named_or_harmless(index_file):
    path, shards, entries = index_file
    data, random, named, harmless = path.read_bytes(), np.random.default_rng(0), 0, 0
    for _ in range(400):
        broken = bytearray(data)
        place, bit = int(random.integers(len(data))), int(random.integers(8))
        broken[place] ^= 1 << bit
        try:
            reader = IndexReader(io.BytesIO(broken), shards)
            read = [reader.read(number) for number in range(4)]
        except ManifestError as error:
            named += "samples.parquet" in str(error)
            continue
        for rows, expected in zip(read, entries, strict=True):
            assert [rows.entry(place) for place in range(len(rows))] == expected
        harmless += 1
    assert named + harmless == 400
    assert named > 100


def test_reading_rows_does_not_load_pandas(index_file):
    path, shards, _ = index_file
    room = "maskshards.shards.format"
    program = f"import sys\nfrom {room}.index import ShardInfo\n"
    program += f"from {room}.index_parquet import IndexReader\n"
    program += f"rows = IndexReader({str(path)!r}, {list(shards)!r}).read(3)\n"
    program += "sys.exit('pandas' in sys.modules or len(rows) != 40)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_a_row_group_over_a_network_is_one_question(index_file, serve, monkeypatch):
    path, shards, entries = index_file
    monkeypatch.setattr("maskshards.shards.storage.base.WHOLE_FILE_BYTES", 0)
    server = serve(path.parent)
    store = open_store(server.url)
    reader = IndexReader(IndexFile(store), shards)
    asked = []
    read = store.read
    monkeypatch.setattr(store, "read", lambda name, at, size: asked.append(size) or read(name, at, size))
    for number in (3, 0, 1):
        rows = reader.read(number)
        assert [rows.entry(place) for place in range(len(rows))] == entries[number]
    assert len(asked) == 3
    assert sum(asked) < path.stat().st_size
    store.close()
