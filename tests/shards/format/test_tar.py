"""Shards: the bytes are plain USTAR, as tarfile and tar agree, and reading checks each of them."""

import errno
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
from contextlib import nullcontext
from dataclasses import replace

import google_crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskshards.shards.errors import SampleError
from maskshards.shards.format.record import Record, from_members, to_members
from maskshards.shards.format.rle import encode_label_map
from maskshards.shards.format.tar import TarWriter, read_image_and_runs, read_members, tar_header


def records(count, seed=0):
    random = np.random.default_rng(seed)
    for number in range(count):
        class_map = random.integers(0, 3, (5, 7)).astype(np.uint16)
        image, key = random.bytes(int(random.integers(1, 1500))), f"s/sample_{number}"
        yield Record(
            key, image, "png" if number % 2 else "jpg", 5, 7, encode_label_map(class_map), {"n": number}
        )


def written(count, seed=0):
    """(bytes of the shard, entries, writer)."""
    buffer = io.BytesIO()
    with TarWriter(buffer) as writer:
        entries = [writer.add(record) for record in records(count, seed)]
    return buffer.getvalue(), entries, writer


def reader_of(data):
    """What reads a range of a remote shard."""
    return lambda offset, size: bytes(data[offset : offset + size])


@given(st.integers(1, 3), st.integers(0, 1 << 32), st.booleans())
def test_headers_are_those_of_tarfile(folders, size, long):
    name = "/".join(["folder" * (6 if long else 1)] * folders) + "/key.rle.zst"
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    assert tar_header(name, size) == info.tobuf(tarfile.USTAR_FORMAT)


@pytest.mark.parametrize(("name", "size"), [("x" * 101, 1), ("ü.jpg", 1), ("k.jpg", 8**11), ("k.jpg", -1)])
def test_what_a_header_cannot_say_is_refused(name, size):
    with pytest.raises(SampleError, match="USTAR"):
        tar_header(name, size)


@pytest.mark.parametrize("size", [0, 8**11 - 1])
def test_the_smallest_and_the_largest_size_are_said(size):
    info = tarfile.TarInfo("k.jpg")
    info.size = size
    assert tar_header("k.jpg", size) == info.tobuf(tarfile.USTAR_FORMAT)


def test_tarfile_reads_what_was_written_and_finds_it_plain():
    data, entries, _ = written(4)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        infos = archive.getmembers()
        expected = [member for record in records(4) for member in to_members(record)]
        assert [(info.name, archive.extractfile(info).read()) for info in infos] == expected
        for info in infos:
            assert info.isreg()
            assert (info.mtime, info.uid, info.gid, info.uname, info.gname) == (0, 0, 0, "", "")
            assert (info.mode, info.pax_headers) == (0o644, {})
        offsets = [info.offset_data for info in infos]
    assert offsets == [o for e in entries for o in (e.image_offset, e.json_offset, e.runs_offset)]


@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar program")
def test_the_tar_program_lists_the_members(tmp_path):
    with TarWriter(tmp_path / "a.tar") as writer:
        for record in records(2):
            writer.add(record)
    done = subprocess.run(["tar", "-tf", tmp_path / "a.tar"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [name for record in records(2) for name, _ in to_members(record)]
    assert done.stderr == ""


def test_the_writer_knows_size_and_digest_and_equal_samples_give_equal_bytes():
    data, _, writer = written(3)
    assert (writer.num_bytes, writer.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert data == written(3)[0]
    assert writer.crc32c == google_crc32c.value(data)
    assert data[-1024:] == bytes(1024)
    assert written(0)[0] == bytes(1024)


def test_entries_say_what_the_records_hold():
    data, entries, _ = written(3)
    for record, entry in zip(records(3), entries, strict=True):
        assert (entry.key, entry.image_format) == (record.key, record.image_format)
        assert (entry.height, entry.width) == (5, 7)
        assert entry.class_ids == tuple(record.runs.labels.tolist())
        assert sum(entry.areas) == 35
        assert data[entry.image_offset :][: entry.image_size] == record.image
        assert entry.image_crc32c == google_crc32c.value(record.image)


def test_a_repeated_key_is_refused():
    writer = TarWriter(io.BytesIO())
    record = next(records(1))
    writer.add(record)
    size = writer.num_bytes
    with pytest.raises(SampleError, match="already"):
        writer.add(record)
    assert writer.num_bytes == size


def test_a_record_that_was_refused_leaves_nothing_and_its_key_is_free():
    writer, record = TarWriter(io.BytesIO()), next(records(1))
    with pytest.raises(SampleError):
        writer.add(replace(record, height=6))
    assert writer.num_bytes == 0
    writer.add(record)


def test_a_file_is_never_overwritten_and_an_error_leaves_no_end_marker(tmp_path):
    path = tmp_path / "a.tar"

    def fail():
        with TarWriter(path) as writer:
            writer.add(next(records(1)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_bytes()[-512:] != bytes(512)
    with pytest.raises(FileExistsError):
        TarWriter(path)


def test_the_writer_closes_its_own_file_however_it_ends_and_never_anothers(tmp_path, monkeypatch):
    def use(target, *errors):
        with pytest.raises(errors) if errors else nullcontext(), TarWriter(target) as writer:
            writer.add(next(records(1)))
            if KeyboardInterrupt in errors:
                raise KeyboardInterrupt
        return writer._file

    assert use(tmp_path / "whole.tar").closed
    assert use(tmp_path / "ended.tar", KeyboardInterrupt).closed
    assert not use(io.BytesIO()).closed
    assert not use(io.BytesIO(), KeyboardInterrupt).closed

    def full(handle):
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "fsync", full)
    assert use(tmp_path / "full.tar", OSError).closed


def test_members_are_read_by_index_from_a_file_or_a_function(tmp_path):
    data, entries, _ = written(5)
    (tmp_path / "a.tar").write_bytes(data)
    with open(tmp_path / "a.tar", "rb") as file:
        for record, entry in zip(records(5), entries, strict=True):
            assert from_members(read_members(file, entry)) == record
            assert from_members(read_members(reader_of(data), entry)) == record


def test_a_sample_whose_json_is_long_is_read_too():
    class_map = np.arange(40 * 50, dtype=np.uint16).reshape(40, 50) % 1000
    record = Record("many", b"image", "jpg", 40, 50, encode_label_map(class_map), {})
    buffer = io.BytesIO()
    with TarWriter(buffer) as writer:
        entry = writer.add(record)
    assert entry.json_size > 4 * 512
    assert from_members(read_members(reader_of(buffer.getvalue()), entry)) == record


def test_a_shard_is_on_disk_when_it_is_closed(tmp_path, monkeypatch):
    """What is flushed is the file with its last byte, not what happened to leave a buffer."""
    flushed, flush = [], os.fsync

    def fsync(handle):
        flushed.append(os.fstat(handle).st_size)
        flush(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with TarWriter(tmp_path / "a.tar") as writer:
        for record in records(2):
            writer.add(record)
    assert flushed == [(tmp_path / "a.tar").stat().st_size]


def test_a_flipped_bit_in_any_byte_of_a_sample_is_named_or_harmless():
    data, entries, _ = written(2)
    entry, intact = entries[1], records(2)
    good = [to_members(record) for record in intact][1]
    named = harmless = 0
    for place in range(entry.image_offset - 512, entry.runs_offset + entry.runs_size):
        broken = bytearray(data)
        broken[place] ^= 1 << (place % 8)
        try:
            harmless += read_members(reader_of(broken), entry, shard="a.tar") == good
        except SampleError as error:
            named += (error.shard, error.key) == ("a.tar", entry.key)
    assert harmless == 512 + entry.runs_offset + entry.runs_size - entry.image_offset - named
    assert named == entry.image_size + entry.json_size + entry.runs_size


def test_a_training_reads_image_and_runs_and_names_a_flipped_bit_in_either():
    """Every byte of the two, one bit each; the JSON between them is passed over, and its harm too."""
    data, entries, _ = written(2)
    entry, (image, _, runs) = entries[1], [value for _, value in to_members(list(records(2))[1])]
    for place in range(entry.image_offset - 512, entry.runs_offset + entry.runs_size):
        broken = bytearray(data)
        broken[place] ^= 1 << (place % 8)
        name = next(
            (
                ending
                for ending, offset, size in (
                    (".png", entry.image_offset, entry.image_size),
                    (".rle.zst", entry.runs_offset, entry.runs_size),
                )
                if offset <= place < offset + size
            ),
            None,
        )
        if name is None:
            assert read_image_and_runs(reader_of(broken), entry, shard="a.tar") == (image, runs)
            continue
        with pytest.raises(SampleError, match=rf"{name} has crc32c") as caught:
            read_image_and_runs(reader_of(broken), entry, shard="a.tar")
        assert (caught.value.shard, caught.value.key) == ("a.tar", entry.key)
    with pytest.raises(SampleError, match="cut short"):
        read_image_and_runs(reader_of(data[: entry.runs_offset + 1]), entry, shard="a.tar")


def test_a_shard_that_was_cut_short_is_named():
    data, entries, _ = written(2)
    for end in (
        0,
        entries[1].image_offset,
        entries[1].json_offset + 1,
        entries[1].runs_offset,
        len(data) - 1200,
    ):
        cut = data[: min(end, entries[1].runs_offset + entries[1].runs_size - 1)]
        with pytest.raises(SampleError, match="cut short") as caught:
            read_members(reader_of(cut), entries[1], shard="a.tar")
        assert caught.value.key == entries[1].key


@pytest.mark.parametrize("read", [read_members, read_image_and_runs])
def test_members_lie_no_further_apart_than_two_headers_and_paddings(read):
    """At the limits the bytes are read, and those that the index speaks of are not there."""
    data, entries, _ = written(1)
    entry = entries[0]
    assert entry.image_offset == 512
    after = entry.image_offset + entry.image_size + entry.json_size
    for lie, says in (
        ({"runs_offset": after}, "crc32c|bytes"),
        ({"runs_offset": after - 1}, "not of this shard"),
        ({"runs_offset": after + 2048}, "crc32c|bytes"),
        ({"runs_offset": after + 2049}, "not of this shard"),
        ({"image_offset": 511, "runs_offset": after}, "not of this shard"),
    ):
        with pytest.raises(SampleError, match=says) as caught:
            read(reader_of(data), replace(entry, **lie), shard="a.tar")
        assert (caught.value.shard, caught.value.key) == ("a.tar", entry.key)


def test_a_member_that_would_lie_before_its_sample_is_named():
    data, entries, _ = written(2)
    for offset in (0, entries[0].json_offset, entries[1].image_offset - 1):
        with pytest.raises(SampleError, match=r"\.json has "):
            read_members(reader_of(data), replace(entries[1], json_offset=offset), shard="a.tar")


@pytest.mark.parametrize("read", [read_members, read_image_and_runs])
def test_members_that_are_not_there_are_missed_even_where_nothing_has_the_right_checksum(read):
    """The crc32c of no bytes is 0, and that of a member may be."""
    entry = written(1)[1][0]
    empty = replace(entry, image_crc32c=0, json_crc32c=0, runs_crc32c=0)
    with pytest.raises(SampleError, match=r"\.jpg has 0 bytes, the index says .*cut short"):
        read(reader_of(b""), empty, shard="a.tar")


def test_an_index_that_would_read_half_the_disk_is_refused():
    entries = written(1)[1]

    for lie in ({"runs_offset": 1 << 40}, {"image_offset": 0}, {"runs_offset": 0}):
        with pytest.raises(SampleError, match="not of this shard"):
            read_members(
                lambda at, size: pytest.fail("must not read"), replace(entries[0], **lie), shard="a.tar"
            )
