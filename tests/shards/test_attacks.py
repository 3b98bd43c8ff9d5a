"""Data sets made or damaged by an adversary, read as a training run reads them.

Every bit that is flipped anywhere, every cut and every lie must end in a typed error that names the place, or
change nothing that comes out. Nothing may be allocated because a byte claims that it is needed, and nothing
outside the folder may be touched.
"""

import hashlib
import io
import json
import struct
import tarfile
import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import maskshards.shards.format.index_parquet
from maskshards.shards.commands.verify import check_split
from maskshards.shards.decode.jpeg import decode_image
from maskshards.shards.errors import ManifestError, SampleError, ShardError, StoreError
from maskshards.shards.format.index import ShardInfo
from maskshards.shards.format.manifest import (
    MANIFEST_NAME,
    Manifest,
    Split,
    _digest,
    finish_manifest,
    open_split,
    parse_manifest,
    write_split,
)
from maskshards.shards.format.record import from_members, to_members
from maskshards.shards.format.rle import decode_label_map, encode_label_map, pack_runs, unpack_runs
from maskshards.shards.format.tar import TarWriter, read_members, tar_header
from maskshards.shards.storage.base import Store

INDEX = "samples.parquet"


class MemoryStore(Store):
    """A split's files as a dictionary, so that thousands of damaged copies cost nothing."""

    base = "memory"

    def __init__(self, files):
        self.files = files

    def size(self, name):
        return len(self.files[name])

    def read(self, name, offset, size):
        data = self.files[name][offset : offset + size]
        if len(data) != size:
            raise StoreError(f"{name} ends at {offset + len(data)}, expected {offset + size}")
        return bytes(data)

    def close(self):
        pass


def open_memory(files):
    return Split(parse_manifest(bytes(files[MANIFEST_NAME])), MemoryStore(files))


def read_sample(split, number, place):
    """What training takes from one sample: key, pixels and class map."""
    name = split.manifest.shards[number].name
    entry = split.index(number).entry(place)
    record = from_members(read_members(partial(split.store.read, name), entry, shard=name), shard=name)
    pixels = np.empty((entry.height, entry.width, 3), np.uint8)
    decode_image(record.image, record.image_format, pixels)
    class_map = decode_label_map(record.runs, record.height, record.width)
    return record.key, pixels.tobytes(), class_map.tobytes()


def read_everything(split):
    counts = split.manifest.shard_samples.tolist()
    return [
        read_sample(split, number, place) for number, count in enumerate(counts) for place in range(count)
    ]


@pytest.fixture(scope="module")
def intact(make_split):
    made = make_split("attacked", [2, 1])
    return {path.name: path.read_bytes() for path in made.folder.iterdir()}


@pytest.fixture(scope="module")
def truth(intact):
    return read_everything(open_memory(intact))


def outcome(files, truth):
    """'same', or the error; anything else that comes out is a silent change and fails."""
    try:
        found = read_everything(open_memory(files))
    except (ShardError, StoreError) as error:
        return error
    assert found == truth
    return "same"


def flipped(files, name, place, bit):
    data = bytearray(files[name])
    data[place % len(data)] ^= 1 << bit
    return {**files, name: bytes(data)}


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_bit_flipped_anywhere_is_named_or_harmless(intact, truth, data):
    name = data.draw(st.sampled_from(sorted(intact)))
    place = data.draw(st.integers(0, len(intact[name]) - 1))
    result = outcome(flipped(intact, name, place, data.draw(st.integers(0, 7))), truth)
    if result == "same":
        return
    if name.endswith(".tar"):
        assert isinstance(result, SampleError)
        assert result.shard == name
        assert result.key in [key for key, _, _ in truth]
    else:
        assert isinstance(result, ManifestError)
        assert name in str(result)


@pytest.mark.slow
def test_every_byte_of_a_split_damaged_is_named_or_harmless(intact, truth):
    named = total = 0
    for name in intact:
        for place in range(len(intact[name])):
            total += 1
            named += outcome(flipped(intact, name, place, place % 8), truth) != "same"
    assert total == sum(map(len, intact.values()))
    assert 0.3 * total < named < total


def test_a_flip_in_a_payload_names_its_own_sample(intact, truth):
    split = open_memory(intact)
    name = split.manifest.shards[0].name
    rows = split.index(0)
    for row, member in [(row, member) for row in (0, 1) for member in ("image", "json", "runs")]:
        offset, size = (int(getattr(rows, f"{member}_{part}")[row]) for part in ("offset", "size"))
        for place in {0, 1, size // 2, size - 1}:
            error = outcome(flipped(intact, name, offset + place, place % 8), truth)
            assert (error.shard, error.key) == (name, rows.keys[row])


def test_a_cut_at_any_boundary_is_named_and_harms_nothing_before_it(intact, truth):
    split = open_memory(intact)
    name, rows = split.manifest.shards[0].name, split.index(0)
    boundaries = {0, len(intact[name]) - 1024, len(intact[name]) - 512}
    for row in (0, 1):
        entry = rows.entry(row)
        for offset, size in (
            (entry.image_offset, entry.image_size),
            (entry.json_offset, entry.json_size),
            (entry.runs_offset, entry.runs_size),
        ):
            boundaries |= {
                offset - 512,
                offset,
                offset + size,
                offset + size + -size % 512,
                offset + size // 2,
            }
    for end in sorted(boundaries):
        cut = open_memory({**intact, name: intact[name][:end]})
        for row in (0, 1):
            entry = rows.entry(row)
            if entry.runs_offset + entry.runs_size <= end:
                assert read_sample(cut, 0, row) == truth[row]
            else:
                with pytest.raises(StoreError, match=name):
                    read_sample(cut, 0, row)
        assert read_sample(cut, 1, 0) == truth[2]
        assert not check_split(cut)["ok"]


@pytest.mark.parametrize("name", [MANIFEST_NAME, INDEX])
def test_a_manifest_or_index_cut_anywhere_is_named(intact, truth, name):
    for end in range(0, len(intact[name]) - 1, 97):
        assert isinstance(outcome({**intact, name: intact[name][:end]}, truth), ManifestError)


def test_files_of_another_data_set_under_the_same_names_are_refused(intact, truth, make_split):
    other = make_split("stranger", [2, 1], seed=9)
    for name in intact:
        assert outcome({**intact, name: (other.folder / name).read_bytes()}, truth) != "same"


# From here on the adversary writes the data set himself, so all digests and checksums fit.


@pytest.fixture
def forge(tmp_path, make_split, monkeypatch):
    """forge(alter_members, alter_entry) -> an open one-sample split whose checksums all fit the lie."""
    made = make_split("forged_from", [1])
    split = open_split(made.folder)
    name = split.manifest.shards[0].name
    record = from_members(read_members(partial(split.store.read, name), split.index(0).entry(0)))

    def make(alter_members=list, alter_entry=lambda entry: entry, alter_tar=bytearray):
        folder = tmp_path / "forged"
        folder.mkdir()
        buffer = io.BytesIO()
        writer = TarWriter(buffer)
        entry = writer.add(record)
        buffer = io.BytesIO()
        writer = TarWriter(buffer)
        for (member_name, data), part in zip(
            alter_members(to_members(record)), ("image", "json", "runs"), strict=True
        ):
            offset, crc32c = writer._member(member_name, data)
            entry = replace(
                entry, **{f"{part}_offset": offset, f"{part}_size": len(data), f"{part}_crc32c": crc32c}
            )
        writer.close()
        data = bytes(alter_tar(bytearray(buffer.getvalue())))
        (folder / "training-00000.tar").write_bytes(data)
        info = ShardInfo("training-00000.tar", 1, len(data), hashlib.sha256(data).hexdigest())
        with monkeypatch.context() as careless:
            careless.setattr(maskshards.shards.format.index_parquet, "check_rows", lambda rows, shard: None)
            classes = tuple(map(str, range(150)))
            write_split(folder, Manifest("forged", "training", classes, (info,)), [[alter_entry(entry)]])
        return open_split(folder)

    return make


def with_runs(payload=None, **header):
    """Replace the runs by a zstd frame of `payload`, or of a header with some fields changed."""

    def alter(members):
        facts = json.loads(members[1][1])
        fields = {
            "magic": b"MSR1",
            "flags": 0,
            "labels": 1,
            "height": facts["height"],
            "width": facts["width"],
        }
        made = struct.pack("<4sHHIII", *{**fields, "runs": 1, **header}.values()) + bytes(8)
        data = zstandard.ZstdCompressor(level=1).compress(made if payload is None else payload)
        return [*members[:2], (members[2][0], data)]

    return alter


def with_image(image, ending=None):
    def alter(members):
        name = members[0][0] if ending is None else members[0][0].rsplit(".", 1)[0] + ending
        return [(name, image), *members[1:]]

    return alter


def with_json(**changes):
    def alter(members):
        facts = {**json.loads(members[1][1]), **changes}
        return [members[0], (members[1][0], json.dumps(facts).encode()), members[2]]

    return alter


def huge_png():
    """A whole PNG of 60,000 x 60,000 black pixels in a few kilobytes of header and zeros."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(10**7))),
    ]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in [*chunks, (b"IEND", b"")]
    )
    return b"\x89PNG\r\n\x1a\n" + body


def test_the_forger_alone_changes_nothing(forge):
    split = forge()
    assert check_split(split, deep=True)["ok"]


@pytest.mark.parametrize(
    ("alter", "says"),
    [
        (with_runs(bytes(300_000_000)), "claim 300000000 bytes"),
        (with_runs(runs=0xFFFFFFFF), "do not"),
        (with_runs(labels=0xFFFF, flags=1), "do not"),
        (with_runs(b"MSR1" + bytes(100)), "expected"),
        (with_runs(b"PK" + bytes(100)), "another format"),
        (with_image(huge_png()), "image|JPEG|PNG"),
        (with_image(b"\xff\xd8\xff" + bytes(100)), "image|JPEG|PNG"),
        (with_image(b"GIF89a" + bytes(100)), "image|JPEG|PNG"),
        (with_json(height=60000, width=60000), "at most"),
        (with_json(height=1, width=1), "image|claim"),
        (with_json(version=7), "version 7"),
        (with_json(source="__import__('os')"), "source"),
        (with_json(areas=[10**400]), "not those of the runs"),
    ],
    ids=lambda value: None if callable(value) else value,
)
def test_bombs_and_lies_with_fitting_checksums_are_named(forge, alter, says):
    split = forge(alter)
    with pytest.raises(SampleError, match=says):
        read_sample(split, 0, 0)
    verdict = check_split(split, deep=True)
    assert [fault["key"] for fault in verdict["faults"]] == [split.index(0).keys[0]]


@pytest.mark.parametrize(
    "lie",
    [
        {"key": "../../outside"},
        {"key": "/etc/passwd"},
        {"key": "a/../b"},
        {"key": "x\n"},
        {"image_format": "pyd"},
        {"height": 1 << 30},
        {"height": -5},
        {"image_offset": 0},
        {"image_offset": -512},
        {"json_offset": 1 << 60},
        {"runs_size": 0},
        {"areas": (2**31 - 1,), "class_ids": (65535,)},
    ],
    ids=str,
)
def test_an_index_that_lies_with_fitting_digests_is_refused(forge, lie):
    split = forge(alter_entry=lambda entry: replace(entry, **lie))
    with pytest.raises(ManifestError, match=r"training-00000\.tar"):
        split.index(0)


def retyped(kind, name=None):
    """Give the first member another type or name, with a header checksum that fits."""

    def alter(data):
        header = bytearray(data[:512])
        header[156:157] = kind
        if name is not None:
            header[:100] = name.ljust(100, b"\0")
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        return bytes(header) + bytes(data[512:])

    return alter


@pytest.mark.parametrize(
    "alter",
    [
        retyped(tarfile.SYMTYPE),
        retyped(tarfile.LNKTYPE),
        retyped(tarfile.CHRTYPE),
        retyped(tarfile.DIRTYPE),
        retyped(tarfile.XHDTYPE),
        retyped(tarfile.GNUTYPE_LONGNAME),
        retyped(tarfile.GNUTYPE_SPARSE),
        retyped(tarfile.REGTYPE, b"../../../tmp/evil.jpg"),
        retyped(tarfile.REGTYPE, b"/etc/cron.d/evil"),
    ],
    ids=[
        "symlink",
        "hard link",
        "device",
        "folder",
        "pax header",
        "long name",
        "sparse",
        "path out",
        "absolute path",
    ],
)
def test_links_devices_and_paths_in_headers_are_found_and_never_followed(forge, alter):
    split = forge(alter_tar=alter)
    read_sample(split, 0, 0)  # the index leads to the bytes; headers are not even looked at
    (fault,) = check_split(split)["faults"]
    assert "header" in fault["what"]


def test_extra_headers_between_members_do_not_fit_the_index(forge):
    extra = (
        tar_header("PaxHeaders/x", 20)[:156] + b"x" + bytes(355) + b"20 path=../../evil\n".ljust(512, b"\0")
    )
    split = forge(alter_tar=lambda data: extra + bytes(data))
    with pytest.raises(ManifestError, match="do not fill"):
        split.index(0)


@pytest.mark.parametrize(
    "name", ["../t.tar", "/etc/passwd.tar", "a/b.tar", "http://x/y.tar", "pipe:cat x.tar", ".tar"]
)
def test_a_manifest_cannot_lead_out_of_its_folder(name):
    info = ShardInfo(name, 1, 2048, "00" * 32, "00" * 32)
    bare = Manifest("forged", "training", ("a",), (info,))
    forged = replace(bare, fingerprint=bare.content_digest())
    with pytest.raises(ManifestError, match="plain tar file name"):
        parse_manifest(forged.to_bytes())


def test_a_shard_that_is_a_symlink_to_a_device_is_not_read(forge):
    split = forge()
    shard = split.manifest.shards[0].name
    folder = Path(split.base)
    (folder / shard).unlink()
    (folder / shard).symlink_to("/dev/zero")
    with pytest.raises(StoreError, match="regular file"):
        read_sample(open_split(folder), 0, 0)


def test_checksums_are_castagnoli():
    assert google_crc32c.value(b"123456789") == 0xE3069283  # the check value of CRC-32C (RFC 3720, B.4)


def leaves(value, path=()):
    """Paths of all values inside a JSON document, containers too."""
    yield path
    if isinstance(value, dict | list):
        for name in value if isinstance(value, dict) else range(len(value)):
            yield from leaves(value[name], (*path, name))


def planted(document, path, value):
    """The document with another value at a path."""
    if not path:
        return value
    document = dict(document) if isinstance(document, dict) else list(document)
    document[path[0]] = planted(document[path[0]], path[1:], value)
    return document


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_any_value_anywhere_in_a_forged_manifest_is_refused_or_typed(data):
    shard = ShardInfo("t-00000.tar", 1, 2048, "00" * 32, "00" * 32)
    rejects = ({"name": "a", "reason": "b"},)
    made = Manifest("d", "s", ("a", "b"), (shard,), {"x": 1}, ((1, 2, 3), (4, 5, 6)), {"y": 2}, rejects)
    facts = json.loads(finish_manifest(made, made.shards).to_bytes())
    facts.pop("checksum")
    facts = planted(facts, data.draw(st.sampled_from(sorted(leaves(facts), key=str))), data.draw(anything))
    if isinstance(facts, dict):
        facts["checksum"] = _digest(facts)
    try:
        manifest = parse_manifest(json.dumps(facts).encode())
    except ManifestError:
        return
    assert isinstance(manifest.dataset, str)
    assert isinstance(manifest.split, str)
    assert all(isinstance(name, str) for name in manifest.classes)
    assert isinstance(manifest.label_rule, dict)
    assert isinstance(manifest.settings, dict)
    assert all(
        isinstance(text, str) for reject in manifest.rejects for text in (reject["name"], reject["reason"])
    )
    assert manifest.palette is None or np.array(manifest.palette).shape == (2, 3)
    assert parse_manifest(manifest.to_bytes()) == manifest


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_any_value_anywhere_in_the_json_of_a_sample_is_refused_or_harmless(data):
    facts = {"version": 1, "height": 2, "width": 3, "class_ids": [4], "areas": [6], "source": {"n": 1}}
    runs = pack_runs(encode_label_map(np.full((2, 3), 4, np.uint16)), 2, 3)
    facts = planted(facts, data.draw(st.sampled_from(sorted(leaves(facts), key=str))), data.draw(anything))
    members = [("k.jpg", b"x"), ("k.json", json.dumps(facts).encode()), ("k.rle.zst", runs)]
    place = None
    try:
        record = from_members(members, shard="t.tar")
    except SampleError as error:
        place = error.shard, error.key
    if place is None:
        assert (record.height, record.width) == (2, 3)
        assert isinstance(record.source, dict)
    else:
        assert place == ("t.tar", "k")


fields = st.sampled_from([0, 1, 2, 3, 4, 6, 254, 255, 256, 65535]) | st.integers(0, 65535)


@settings(max_examples=600, deadline=None)
@given(fields, fields, fields, fields, fields, st.binary(max_size=40))
def test_any_payload_of_runs_is_refused_or_canonical(flags, num_labels, height, width, num_runs, rest):
    payload = struct.pack("<4sHHIII", b"MSR1", flags, num_labels, height, width, num_runs) + rest
    try:
        runs = unpack_runs(zstandard.ZstdCompressor(level=1).compress(payload), height, width)
    except ShardError:
        return
    class_map = decode_label_map(runs, height, width)
    assert encode_label_map(class_map) == runs


def other_columns(table):
    import pyarrow as pa

    yield table.drop_columns(["areas"])
    yield table.append_column("more", pa.array([1] * len(table)))
    yield table.set_column(1, "key", pa.array([None] * len(table), pa.string()))
    yield table.set_column(3, "height", pa.array([1.5] * len(table)))
    yield table.set_column(0, "shard", pa.array([7] * len(table), pa.int32()))
    yield table.slice(0, 0)
    yield pa.concat_tables([table, table])


def test_parquet_files_of_another_shape_are_refused(intact):
    import pyarrow.parquet as pq

    whole = pq.ParquetFile(io.BytesIO(intact[INDEX]))
    groups = [whole.read_row_group(number) for number in range(2)]
    shapes = 0
    for number in range(2):
        for altered in other_columns(groups[number]):
            tables = [altered if at == number else group for at, group in enumerate(groups)]
            buffer = io.BytesIO()
            try:
                with pq.ParquetWriter(buffer, tables[number].schema) as writer:
                    for table in tables:
                        writer.write_table(table.select(tables[number].column_names))
            except (KeyError, ValueError):
                continue  # two groups of different columns cannot stand in one file
            shapes += 1
            with pytest.raises(ManifestError, match=r"samples\.parquet"):
                open_memory({**intact, INDEX: buffer.getvalue()}).index(number)
    assert shapes >= 6
