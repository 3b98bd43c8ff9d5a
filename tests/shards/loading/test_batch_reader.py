"""Reading never trusts: every damage is an error that names shard and key, or a counted substitute."""

import io
import shutil
import threading
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from maskshards.shards.errors import SampleError, ShardError, StoreError
from maskshards.shards.format.index import ShardInfo
from maskshards.shards.format.manifest import Manifest, open_split, write_split
from maskshards.shards.format.record import Record
from maskshards.shards.format.rle import encode_label_map
from maskshards.shards.format.tar import TarWriter
from maskshards.shards.loading.batch_reader import BatchPlan, BatchReader
from maskshards.shards.loading.loader import Loader
from maskshards.shards.order.selection import whole
from maskshards.shards.storage.base import MOST_READS


@pytest.fixture(scope="module")
def made(make_split):
    return make_split("reading", [4, 6])


@pytest.fixture
def damaged(made, tmp_path):
    """A copy of the split whose files may be changed."""
    return shutil.copytree(made.folder, tmp_path / "copy")


def plan(*samples):
    parts, places = zip(*samples, strict=True)
    size = len(samples)
    return BatchPlan(tuple(range(size)), (0,) * size, parts, places, (True,) * size)


def reader(folder, **settings):
    return BatchReader(whole(open_split(str(folder))), seed=0, **settings)


def flip(path, offset, bit=0x10):
    data = bytearray(path.read_bytes())
    data[offset] ^= bit
    path.write_bytes(data)


def entry(folder, shard, row):
    return open_split(str(folder)).index(shard).entry(row)


def test_the_json_is_no_part_of_a_batch(damaged):
    whole_batch = reader(damaged).read(plan((1, 2)))
    flip(damaged / "training-00001.tar", entry(damaged, 1, 2).json_offset + 5)
    assert torch.equal(reader(damaged).read(plan((1, 2))).pixels, whole_batch.pixels)


@pytest.mark.parametrize("member", ["image", "runs"])
def test_a_flipped_bit_names_shard_key_and_member(damaged, made, member):
    row = entry(damaged, 1, 2)
    flip(damaged / "training-00001.tar", getattr(row, f"{member}_offset") + 5)
    with pytest.raises(
        SampleError, match=r"training-00001\.tar, sample 'reading_1_2': .* has crc32c"
    ) as caught:
        reader(damaged).read(plan((0, 0), (1, 2)))
    assert (caught.value.shard, caught.value.key) == ("training-00001.tar", "reading_1_2")
    assert reader(damaged).read(plan((0, 0), (1, 1))).keys == ("reading_0_0", "reading_1_1")


def test_every_bit_of_a_shard_is_guarded_or_without_effect(damaged, made):
    """A flip anywhere gives the same batch or a SampleError, never other content."""
    path = damaged / "training-00000.tar"
    healthy = path.read_bytes()
    everything = plan(*((0, place) for place in range(4)))
    want = reader(damaged).read(everything)
    random, refused, unchanged = np.random.default_rng(0), 0, 0
    for offset in random.integers(0, len(healthy), 200):
        flip(path, int(offset), 1 << int(random.integers(8)))
        try:
            got = reader(damaged).read(everything)
        except SampleError as error:
            refused += (error.shard, bool(error.key)) == (path.name, True)
        else:
            assert got.keys == want.keys
            assert got.pixels.equal(want.pixels)
            assert got.run_ends.equal(want.run_ends)
            assert got.run_owners.equal(want.run_owners)
            unchanged += 1
        path.write_bytes(healthy)
    assert refused + unchanged == 200
    assert refused > 10  # most of a small tar is padding


def test_truncation_is_a_fault_of_the_shard(damaged):
    path, row = damaged / "training-00001.tar", entry(damaged, 1, 5)
    path.write_bytes(path.read_bytes()[: row.runs_offset + 3])
    with pytest.raises(SampleError, match=r"training-00001\.tar.* has \d+ bytes, the manifest says \d+"):
        reader(damaged).read(plan((1, 5)))


def test_a_missing_shard_is_no_sample_fault(damaged):
    (damaged / "training-00001.tar").unlink()
    for policy in ("raise", "replace"):
        with pytest.raises(StoreError, match=r"training-00001\.tar cannot be opened"):
            reader(damaged, policy=policy).read(plan((1, 0)))


def test_another_data_sets_shard_under_the_same_name_is_refused(damaged, make_split):
    other = make_split("other", [4, 6], seed=8)
    shutil.copy(other.folder / "training-00000.tar", damaged / "training-00000.tar")
    with pytest.raises(SampleError, match=r"training-00000\.tar, sample 'reading_0_3'"):
        reader(damaged).read(plan((0, 3)))


def test_replacing_keeps_positions_counts_and_is_the_same_in_every_world(damaged, made):
    row = entry(damaged, 1, 2)
    flip(damaged / "training-00001.tar", row.image_offset + 5)
    streams = []
    for batch_per_rank in (1, 2, 5):
        with Loader(
            str(damaged), batch_per_rank=batch_per_rank, global_batch=10, policy="replace", seed=4
        ) as loader:
            batches = [batch for batch, _ in zip(loader, range(20 // batch_per_rank), strict=False)]
        assert loader.num_replaced >= 2
        for batch in batches:
            for i, key in enumerate(batch.keys):
                assert (batch.heights[i], batch.widths[i]) == made.truth[key][1].shape
                pixels = made.truth[key][0].reshape(-1)
                start = sum(3 * h * w for h, w in zip(batch.heights[:i], batch.widths[:i], strict=True))
                assert np.array_equal(batch.pixels[start : start + len(pixels)].numpy(), pixels)
        assert [position for batch in batches for position in batch.positions] == list(range(20))
        streams.append([key for batch in batches for key in batch.keys])
    assert streams[0] == streams[1] == streams[2]
    healthy = [
        key
        for _, batch in zip(
            range(20), Loader(str(made.folder), batch_per_rank=1, global_batch=10, seed=4), strict=False
        )
        for key in batch.keys
    ]
    changed = [(a, b) for a, b in zip(healthy, streams[0], strict=True) if a != b]
    assert {a for a, _ in changed} == {"reading_1_2"}
    assert all(b != "reading_1_2" for _, b in changed)


def test_replacing_gives_up_where_nothing_is_whole(damaged):
    for path in damaged.glob("*.tar"):
        path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(SampleError, match="8 substitutes failed as well"):
        reader(damaged, policy="replace").read(plan((0, 0)))


def test_many_classes_do_not_fit_a_batch(tmp_path):
    class_map = np.arange(300, dtype=np.uint16).reshape(15, 20)
    buffer = io.BytesIO()
    Image.new("RGB", (20, 15)).save(buffer, "PNG")
    with TarWriter(tmp_path / "training-00000.tar") as writer:
        row = writer.add(Record("many", buffer.getvalue(), "png", 15, 20, encode_label_map(class_map), {}))
    info = ShardInfo("training-00000.tar", 1, writer.num_bytes, writer.sha256)
    write_split(tmp_path, Manifest("m", "training", tuple(map(str, range(300))), (info,)), [[row]])
    with pytest.raises(SampleError, match="300 classes in one image, a batch carries at most 254"):
        reader(tmp_path).read(plan((0, 0)))


def test_a_batch_beyond_32_bits_is_refused_before_it_is_allocated(made, monkeypatch):
    monkeypatch.setattr("maskshards.shards.loading.batch_reader.MAX_BATCH_PIXELS", 1000)
    with pytest.raises(ValueError, match="lower batch_per_rank"):
        reader(made.folder).read(plan((0, 0), (0, 1)))
    with pytest.raises(ValueError, match="lower batch_per_rank"):
        reader(made.folder).read_encoded(plan((0, 0), (0, 1)))


def test_threads_share_one_reader(made):
    shared = reader(made.folder)
    everything = plan(*((1, place) for place in range(6)))
    want, wrong = shared.read(everything), []

    def work():
        for _ in range(20):
            if not shared.read(everything).pixels.equal(want.pixels):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_encoded_reading_trusts_as_little(damaged, made):
    row = entry(damaged, 1, 2)
    flip(damaged / "training-00001.tar", row.image_offset + 5)
    with pytest.raises(SampleError, match=r"training-00001\.tar, sample 'reading_1_2': .* has crc32c"):
        reader(damaged).read_encoded(plan((1, 2)))
    batch = reader(damaged, policy="replace").read_encoded(plan((1, 2), (0, 0)))
    assert batch.rest.keys[1] == "reading_0_0"
    assert batch.rest.keys[0] != "reading_1_2"
    assert len(batch.rest.pixels) == 0
    assert batch.encoded_offsets[-1] == len(batch.encoded)


def test_tar_headers_are_never_obeyed(damaged, made):
    """Reading goes by the index: a header that says symbolic link, PAX or directory leads nowhere."""
    want = reader(damaged).read(plan((0, 0), (0, 1)))
    path, row = damaged / "training-00000.tar", entry(damaged, 0, 0)
    for kind in b"125xgLK":
        data = bytearray(path.read_bytes())
        data[row.image_offset - 512 + 156] = kind
        data[row.image_offset - 512 + 157 : row.image_offset - 512 + 168] = b"/etc/passwd"
        path.write_bytes(data)
        got = reader(damaged).read(plan((0, 0), (0, 1)))
        assert got.pixels.equal(want.pixels)
        assert got.keys == want.keys


def test_a_shard_deleted_while_training_is_named_when_it_is_needed(damaged):
    with Loader(str(damaged), batch_per_rank=1, threads=1, prefetch_batches=1) as loader:
        batches = iter(loader)
        next(batches)
        for path in damaged.glob("*.tar"):
            path.unlink()
        with pytest.raises(StoreError, match=r"training-0000\d\.tar cannot be opened: No such file"):
            list(islice(batches, 20))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("maskshards")]


def test_a_bit_flipped_on_the_way_is_asked_for_again_and_named_if_it_stays(made, serve):
    want, server = reader(made.folder).read(plan((1, 3))), serve(made.folder)
    over_http = reader(server.url)
    server.faults["training-00001.tar"] = ["flip"]
    assert over_http.read(plan((1, 3))).pixels.equal(want.pixels)
    server.faults["training-00001.tar"] = ["flip"] * MOST_READS
    with pytest.raises(
        SampleError, match=r"training-00001\.tar, sample 'reading_1_3': .* has crc32c"
    ) as caught:
        over_http.read(plan((1, 3)))
    assert (caught.value.shard, caught.value.key) == ("training-00001.tar", "reading_1_3")
    over_http.selection.splits[0].store.close()


def test_each_batch_tells_how_many_of_its_samples_were_replaced(damaged):
    flip(damaged / "training-00001.tar", entry(damaged, 1, 2).image_offset + 5)
    reading = reader(damaged, policy="replace")
    plans = [plan((0, 0)), plan((1, 2), (1, 2)), plan((0, 1))]
    assert [reading.read(plan).num_replaced for plan in plans] == [0, 2, 0]
    assert [reading.read_encoded(plan).rest.num_replaced for plan in plans] == [0, 2, 0]
    assert reading.num_replaced == 4


@pytest.mark.slow
def test_thousands_of_flips_in_any_file_are_errors_or_without_effect(damaged):
    """Manifest, index and shards: whatever bit flips, a typed error or the same batches."""
    everything = plan(*((0, place) for place in range(4)), *((1, place) for place in range(6)))
    want = reader(damaged).read(everything)
    random, refused = np.random.default_rng(1), 0
    paths = sorted(path for path in damaged.iterdir() if path.is_file())
    assert len(paths) == 4
    for _ in range(3000):
        path = paths[int(random.integers(len(paths)))]
        healthy = path.read_bytes()
        flip(path, int(random.integers(len(healthy))), 1 << int(random.integers(8)))
        try:
            got = reader(damaged).read(everything)
        except ShardError:
            refused += 1
        else:
            assert got.keys == want.keys
            assert got.labels == want.labels
            assert got.pixels.equal(want.pixels)
            assert got.run_ends.equal(want.run_ends)
            assert got.run_owners.equal(want.run_owners)
        path.write_bytes(healthy)
    assert refused > 1500  # three quarters hit manifest, index or members
