"""The sample index: read by pyarrow alone, one row group a shard, every value covered by a digest."""

import io
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from shards.errors import ManifestError
from shards.index import IndexReader, SampleEntry, ShardIndex, ShardInfo, check_rows, write_index
from shards.record import Record
from shards.rle import encode_label_map
from shards.tar import TarWriter


def made(shard_samples, seed=0):
    """(shards, rows of each) of a made split."""
    random, shards, entries = np.random.default_rng(seed), [], []
    for number, count in enumerate(shard_samples):
        writer = TarWriter(io.BytesIO())
        rows = []
        for place in range(count):
            height, width = (int(side) for side in random.integers(1, 9, 2))
            class_map = random.choice(np.array([0, 5, 600, 65535], np.uint16), (height, width))
            image = random.bytes(int(random.integers(1, 3000)))
            runs = encode_label_map(class_map)
            rows.append(writer.add(Record(f"k{number}_{place}", image, "jpg", height, width, runs, {})))
        writer.close()
        shards.append(ShardInfo(f"t-{number:05d}.tar", count, writer.num_bytes, writer.sha256))
        entries.append(rows)
    return shards, entries


@pytest.fixture(scope="module")
def index_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("index") / "samples.parquet"
    shards, entries = made([3, 0, 1, 40])
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


def test_entries_survive_json():
    entry = made([1])[1][0][0]
    assert SampleEntry.from_json(entry.to_json()) == entry
    with pytest.raises(KeyError):
        SampleEntry.from_json({})


def test_every_value_is_in_the_digest():
    rows = made([6])[1][0]
    digest = ShardIndex.of_entries(rows).sha256()
    for name, value in rows[2].to_json().items():
        kind = type(value)
        changed = value + 1 if kind is int else value + "x" if kind is str else [v + 1 for v in value]
        changed = tuple(changed) if kind is list else changed
        altered = [*rows[:2], replace(rows[2], **{name: changed}), *rows[3:]]
        assert ShardIndex.of_entries(altered).sha256() != digest, name
    assert ShardIndex.of_entries(rows[::-1]).sha256() != digest


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"key": "../x"}, "grammar"),
        ({"key": "k0_1"}, "repeat"),
        ({"image_format": "gif"}, "gif"),
        ({"height": 0}, "not positive"),
        ({"height": 60000, "width": 60000}, "limit"),
        ({"image_offset": 1024}, "do not fill"),
        ({"runs_size": 100_000}, "do not fill"),
        ({"areas": (0,), "class_ids": (1,)}, "out of range"),
        ({"areas": (4,), "class_ids": (65535,)}, "out of range"),
    ],
)
def test_rows_that_no_shard_can_have_are_refused(change, says):
    (shard,), (entries,) = made([2])
    check_rows(ShardIndex.of_entries(entries), shard)
    rows = ShardIndex.of_entries([replace(entries[0], **change), entries[1]])
    with pytest.raises(ManifestError, match=says) as caught:
        check_rows(rows, shard)
    assert shard.name in str(caught.value)


def test_a_shard_of_another_size_or_count_is_refused():
    (shard,), (entries,) = made([2])
    for lie in ({"bytes": shard.bytes + 512}, {"samples": 3}):
        with pytest.raises(ManifestError, match=shard.name):
            check_rows(ShardIndex.of_entries(entries), replace(shard, **lie))


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
    program = "import sys\nfrom shards.index import IndexReader, ShardInfo\n"
    program += f"rows = IndexReader({str(path)!r}, {list(shards)!r}).read(3)\n"
    program += "sys.exit('pandas' in sys.modules or len(rows) != 40)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
