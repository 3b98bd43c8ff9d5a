"""The manifest: its bytes, what the fingerprint covers, atomic publication, what opening says elsewhere."""

import copy
import hashlib
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from maskshards.shards.errors import ManifestError, UnreachableError
from maskshards.shards.format.index import ShardInfo
from maskshards.shards.format.manifest import (
    Manifest,
    finish_manifest,
    is_as_written,
    open_split,
    open_splits,
    parse_manifest,
    write_split,
)
from maskshards.shards.format.record import Record
from maskshards.shards.format.rle import encode_label_map
from maskshards.shards.format.tar import TarWriter

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = {
    "manifest.json": "68f8f79f304d661f",
    "samples.parquet": "59e31a8d1a681778",
    "t-00000.tar": "c41c5b735b9508c0",
}
EARLY_MANIFEST = "d2d93b40f5e10534"  # as written before it held the digest of the index file
GOLDEN_FINGERPRINT = "927de2ca2c99f12f"
DIGESTS = {"sha256": "ab" * 32, "index_sha256": "cd" * 32}


def manifest(**changes):
    shards = (ShardInfo("t-00000.tar", 3, 2048, **DIGESTS), ShardInfo("t-00001.tar", 0, 1024, **DIGESTS))
    facts = {"dataset": "made", "split": "training", "classes": ("sky", "café"), "shards": shards}
    facts |= {"label_rule": {"reduce_zero_label": True}, "palette": ((0, 1, 2), (255, 0, 9))}
    facts |= {"settings": {"workers": [1, 2.5]}, "rejects": ({"name": "a.jpg", "reason": "torn"},)}
    plain = Manifest(**{**facts, **changes})
    return finish_manifest(plain, plain.shards)


def test_the_file_comes_back_as_it_was():
    made = manifest()
    assert parse_manifest(made.to_bytes()) == made
    assert (made.num_samples, made.shard_samples.tolist(), made.class_ids) == (3, [3, 0], (0, 1))
    assert made.reduce_zero_label
    assert not manifest(label_rule={}, palette=None).reduce_zero_label


def test_the_file_is_plain_json_with_what_the_document_names():
    facts = json.loads(manifest().to_bytes())
    assert facts["classes"][1] == {"id": 1, "name": "café", "color": [255, 0, 9]}
    assert (facts["format"], facts["format_version"], facts["num_samples"]) == ("maskshards", 1, 3)
    assert facts["shards"][0] == {"name": "t-00000.tar", "samples": 3, "bytes": 2048, **DIGESTS}
    assert facts["index"] == "samples.parquet"


def test_the_fingerprint_covers_content_and_nothing_else():
    base = manifest()
    for same in ({"settings": {}}, {"dataset": "x"}, {"rejects": ()}, {"palette": None}):
        assert manifest(**same).fingerprint == base.fingerprint
    one, two = base.shards
    for other in (
        {"classes": ("café", "sky")},
        {"shards": (two, one)},
        {"shards": (one,)},
        {"shards": (replace(one, sha256="ef" * 32), two)},
        {"shards": (replace(one, index_sha256="ef" * 32), two)},
    ):
        assert manifest(**other).fingerprint != base.fingerprint


def test_every_flipped_bit_is_named_or_harmless():
    data, good, named, harmless = manifest().to_bytes(), manifest(), 0, 0
    for place in range(len(data)):
        broken = bytearray(data)
        broken[place] ^= 1 << (place % 8)
        try:
            harmless += parse_manifest(bytes(broken)) == good
        except ManifestError as error:
            named += "manifest.json" in str(error)
    assert named + harmless == len(data)
    assert named > 0.7 * len(data)


def test_every_truncation_is_named():
    data = manifest().to_bytes()
    for end in range(0, len(data) - 2, 7):
        with pytest.raises(ManifestError, match=r"manifest\.json"):
            parse_manifest(data[:end])


def forged(**changes):
    """A manifest with changed fields and a checksum that fits, as somebody with intent would write it."""
    from maskshards.shards.format.manifest import _digest

    facts = {**json.loads(manifest().to_bytes()), **changes}
    facts.pop("checksum")
    checksum = "of what is no JSON" if "NaN" in json.dumps(facts) else _digest(facts)
    return json.dumps({**facts, "checksum": checksum}).encode()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": "other"}, "another program"),
        ({"format_version": 2}, "format version 2"),
        ({"num_samples": 4}, "contradicts itself"),
        ({"index": "../other.parquet"}, "contradicts itself"),
        ({"classes": [{"id": 1, "name": "sky"}]}, "contradicts itself"),
        (
            {"classes": [{"id": 0, "name": "sky", "color": [0, 0, 0]}, {"id": 1, "name": "sea"}]},
            "some classes only",
        ),
        ({"fingerprint": "00"}, "its content has"),
        ({"shards": [{"name": "../../etc/x.tar", "samples": 3, "bytes": 1, **DIGESTS}]}, "plain tar file"),
        ({"shards": [{"name": "a.tar", "samples": -3, "bytes": 1, **DIGESTS}]}, "sane counts"),
        (
            {"shards": [{"name": "a.tar", "samples": 3, "bytes": 1, "sha256": "", "index_sha256": ""}]},
            "digests",
        ),
        ({"shards": [{"name": "a.tar"}]}, "cannot be read"),
        *(
            ({"shards": [{"name": "a.tar", "samples": 1, "bytes": 1, **DIGESTS, **change}]}, says)
            for change, says in (
                ({"name": "a.zip"}, "plain tar file"),
                ({"name": "../a.tar"}, "plain tar file"),
                ({"samples": 1.0}, "sane counts"),
                ({"samples": True}, "sane counts"),
                ({"bytes": -1}, "sane counts"),
                ({"sha256": "ab" * 31 + "a"}, "digests"),
                ({"sha256": "ab" * 32 + "a"}, "digests"),
                ({"index_sha256": "AB" * 32}, "digests"),
                ({"index_sha256": "ag" * 32}, "digests"),
                ({"etag": "5"}, "cannot be read"),
            )
        ),
        ({"shards": [{"name": "a.tar", "samples": 1, "bytes": 1, **DIGESTS}] * 2, "num_samples": 2}, "twice"),
        ({"shards": 5}, "cannot be read"),
        ({"classes": None}, "cannot be read"),
        ({"num_samples": 3.0}, "are integers"),
        ({"classes": [{"id": 0.0, "name": "sky"}, {"id": 1, "name": "sea"}]}, "are integers"),
        ({"classes": [{"id": 0, "name": 7}, {"id": 1, "name": "sea"}]}, "names are strings"),
        ({"rejects": [{"name": None, "reason": "torn"}]}, "names are strings"),
        ({"rejects": [{"name": "a.jpg", "reason": 3}]}, "a name and a reason"),
        ({"dataset": 5}, "cannot be read: dataset is a int"),
        ({"split": None}, "split is a NoneType, expected str"),
        ({"settings": []}, "settings is a list, expected dict"),
        ({"settings": {"rate": float("nan")}}, "cannot be read"),
        *(
            (
                {"classes": [{"id": k, "name": name, "color": color} for k, name in enumerate("ab")]},
                "three integers from 0 to 255",
            )
            for color in ([0, 0], [0, 0, 0, 0], [0, 0, 256], [0, -1, 0], [0, 0, 0.5], [0, 0, True])
        ),
        ({"index_sha256": 5}, "no text"),
    ],
)
def test_forged_manifests_are_refused(changes, says):
    with pytest.raises(ManifestError, match=says):
        parse_manifest(forged(**changes))


@pytest.mark.parametrize("name", ["split", "settings", "rejects"])
def test_what_a_manifest_lacks_is_named(name):
    from maskshards.shards.format.manifest import _digest

    facts = json.loads(manifest().to_bytes())
    del facts["checksum"], facts[name]
    with pytest.raises(ManifestError, match=f"manifest.json cannot be read: it lacks '{name}'"):
        parse_manifest(json.dumps({**facts, "checksum": _digest(facts)}).encode())


@pytest.mark.parametrize("data", [b"", b"[]", b"5", b"[" * 100_000, b"\xff\xfe", b'{"format": "maskshards"}'])
def test_other_files_are_refused(data):
    with pytest.raises(ManifestError, match=r"manifest\.json"):
        parse_manifest(data)


def test_what_json_cannot_say_is_not_written():
    for number in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            manifest(settings={"rate": number}).to_bytes()


def test_a_manifest_without_colours_and_with_every_hex_digit_comes_back():
    digest = "0123456789abcdef" * 4
    made = manifest(palette=None, shards=(ShardInfo("a.tar", 1, 2, digest, digest),))
    assert parse_manifest(made.to_bytes()) == made


def test_the_order_of_keys_says_nothing():
    facts = json.loads(manifest().to_bytes())
    facts["shards"] = [dict(reversed(shard.items())) for shard in facts["shards"]]
    assert parse_manifest(json.dumps(dict(reversed(facts.items()))).encode()) == manifest()


def test_fields_of_a_later_minor_addition_are_allowed():
    assert parse_manifest(forged(license="CC0")) == manifest()


def test_bytes_that_say_the_same_otherwise_are_not_as_written():
    data = manifest().to_bytes()
    assert is_as_written(data)
    for other in (data[:-1], data + b"\n", data.replace(b" ", b"  ", 1)):
        assert not is_as_written(other)


def test_splits_below_a_folder_are_found_where_it_is_none_itself(make_split, tmp_path):
    for name in ("validation", "training"):
        (tmp_path / name).symlink_to(make_split(name, [1]).folder)
    assert [split.base for split in open_splits(tmp_path)] == [
        str(tmp_path / name) for name in ("training", "validation")
    ]
    with pytest.raises(ManifestError):
        open_splits(tmp_path / "nothing")


def test_a_split_keeps_its_reader_until_it_is_closed(make_split, monkeypatch):
    split = open_split(make_split("closed", [2]).folder)
    before = split.index(0)
    reader, closed, close = split._reader, [], type(split.store).close
    assert reader is not None
    split.index(0)
    assert split._reader is reader
    monkeypatch.setattr(type(split.store), "close", lambda store: closed.append(store) or close(store))
    split.close()
    assert closed == [split.store]
    assert split._reader is None
    assert split.index(0).keys == before.keys


def test_json_that_would_take_gigabytes_as_objects_is_refused_before_it_is_parsed(monkeypatch):
    monkeypatch.setattr("maskshards.shards.storage.foreign_file.FREE_MARKS", 10)
    for text in (b"[" + b"[]," * 100 + b"1]", b'{"format": [' + b'"aa",' * 100 + b"1]}"):
        with pytest.raises(ManifestError, match=r"^manifest\.json cannot be read: it holds \d+ values"):
            parse_manifest(text)


def test_a_manifest_that_is_too_large_is_not_read(make_split, tmp_path, monkeypatch):
    with open(tmp_path / "manifest.json", "wb") as file:
        file.truncate((1 << 29) + 1)  # no byte of it is on disk
    with pytest.raises(ManifestError, match=r"manifest\.json has 536870913 bytes, more than 536870912$"):
        open_split(tmp_path)
    made = make_split("long", [1])
    num_bytes = (made.folder / "manifest.json").stat().st_size
    monkeypatch.setattr("maskshards.shards.format.manifest.MAX_MANIFEST_BYTES", num_bytes)
    assert open_split(made.folder).manifest == made.manifest
    monkeypatch.setattr("maskshards.shards.format.manifest.MAX_MANIFEST_BYTES", num_bytes - 1)
    with pytest.raises(ManifestError, match=f"more than {num_bytes - 1}$"):
        open_split(made.folder)


def test_below_a_server_that_cannot_be_reached_no_splits_are_looked_for(monkeypatch):
    from maskshards.shards.format import manifest as module

    monkeypatch.setattr(module, "splits_below", lambda place: pytest.fail("must not look"))
    monkeypatch.setattr(module, "open_store", unreachable)
    with pytest.raises(ManifestError, match="no route"):
        open_splits("https://nowhere.invalid/set")


def unreachable(place):
    """A store that does not answer."""

    def size(name):
        raise UnreachableError("no route")

    return SimpleNamespace(size=size, base=place, close=lambda: None, read=size)


def test_a_split_opens_and_reads_its_index_lazily(make_split, monkeypatch):
    made = make_split("lazy", [3, 0, 2])
    split = open_split(made.folder)
    assert split.manifest == made.manifest
    assert split.base == str(made.folder)
    sent = copy.deepcopy(split)  # as a worker process gets it: without open files
    assert [sent.index(n).keys for n in range(3)] == [tuple(keys) for keys in made.keys]
    os.remove(made.folder / "samples.parquet")
    again = open_split(made.folder)
    with pytest.raises(OSError, match=r"samples\.parquet"):
        again.index(0)


def test_publication_is_byte_stable_and_leaves_nothing_else(make_split, tmp_path):
    made = make_split("stable", [2, 3])
    split = open_split(made.folder)
    entries = [[rows.entry(n) for n in range(len(rows))] for rows in (split.index(0), split.index(1))]
    again = write_split(tmp_path, replace(made.manifest, fingerprint=""), iter(entries))
    assert again == made.manifest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "samples.parquet"]
    for name in ("manifest.json", "samples.parquet"):
        assert (tmp_path / name).read_bytes() == (made.folder / name).read_bytes()


def test_each_file_is_on_disk_before_it_shows_and_its_name_after(make_split, tmp_path, monkeypatch):
    """A power cut then finds a whole file under the name, or none."""
    made, done = make_split("durable", [2]), []
    flush, show = os.fsync, os.replace

    def fsync(handle):
        done.append(("flush", Path(os.readlink(f"/proc/self/fd/{handle}")).name))
        flush(handle)

    def replace_(source, target):
        done.append(("show", Path(source).name, Path(target).name))
        show(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace_)
    split = open_split(made.folder)
    rows = split.index(0)
    write_split(tmp_path, made.manifest, iter([[rows.entry(n) for n in range(len(rows))]]))
    assert done == [
        event
        for name in ("samples.parquet", "manifest.json")
        for event in (
            ("flush", f".{name}.part"), ("show", f".{name}.part", name), ("flush", tmp_path.name)
        )
    ]  # fmt: skip


def test_a_publication_that_fails_leaves_no_data_set(make_split, tmp_path):
    made = make_split("failing", [2])

    def entries():
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        write_split(tmp_path, made.manifest, entries())
    with pytest.raises(ValueError, match="argument"):
        write_split(tmp_path, made.manifest, [])
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_manifest_is_named_with_its_folder(make_split):
    made = make_split("damaged", [1])
    (made.folder / "manifest.json").write_bytes(b"{}")
    with pytest.raises(ManifestError, match=f"{made.folder}.*another program"):
        open_splits(made.folder)


@pytest.mark.parametrize("content", [b"{}", None])
def test_a_store_is_let_go_where_its_manifest_is_refused(content, tmp_path, monkeypatch):
    from maskshards.shards.format import manifest as module

    let_go, real = [], module.open_store

    class Counted:
        def __init__(self, place):
            self.store = real(place)

        def __getattr__(self, name):
            return getattr(self.store, name)

        def close(self):
            let_go.append(1)
            self.store.close()

    monkeypatch.setattr(module, "open_store", Counted)
    if content is not None:
        (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(ManifestError):
        open_split(tmp_path)
    assert let_go == [1]


def test_a_manifest_of_many_shards_opens_quickly():
    shards = tuple(ShardInfo(f"t-{n:05d}.tar", 4096, 1024, **DIGESTS) for n in range(24_000))
    data = manifest(shards=shards).to_bytes()
    parsed = parse_manifest(data)
    assert parsed.num_samples == 24_000 * 4096
    assert len(data) < 8_000_000
    assert isinstance(parsed.shard_samples, np.ndarray)


def test_importing_writer_and_manifest_loads_neither_pyarrow_nor_torch():
    program = "import sys, maskshards.shards.format.tar, maskshards.shards.format.manifest\n"
    program += "sys.exit(bool({'pyarrow', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_a_manifest_that_is_no_file_is_said_to_be_none(tmp_path):
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(ManifestError, match="expected a regular file"):
        open_split(tmp_path)


def test_threads_may_share_a_split(make_split):
    made = make_split("shared", [2, 3, 0, 1, 4, 2])
    split = open_split(made.folder)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(split.index, list(range(6)) * 20))
    assert [rows.keys for rows in found] == [tuple(keys) for keys in made.keys] * 20


def test_bytes_are_those_on_file_for_the_pinned_libraries(tmp_path):
    """What was published once must come out of every later version, unless the format version grows."""
    pins = dict(re.findall(r"^(\w+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    for name in ("pyarrow", "zstandard"):
        if version(name) != pins[name]:
            pytest.skip(f"{name} is {version(name)}, bytes are promised for {pins[name]}")
    with TarWriter(tmp_path / "t-00000.tar") as writer:
        rows = []
        for number in range(3):
            class_map = (np.arange(40 * 50).reshape(40, 50) // (7 + number) % 4).astype(np.uint16)
            class_map[class_map == 3] = 65535
            runs = encode_label_map(class_map)
            rows.append(
                writer.add(Record(f"k/{number}", bytes(range(200)), "jpg", 40, 50, runs, {"name": "ü"}))
            )
    info = ShardInfo("t-00000.tar", 3, writer.num_bytes, writer.sha256)
    made = write_split(tmp_path, Manifest("golden", "training", ("a", "b", "c"), (info,)), [rows])
    assert {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in tmp_path.iterdir()
    } == GOLDEN
    assert made.fingerprint.startswith(GOLDEN_FINGERPRINT)
    early = replace(made, index_sha256="")
    assert hashlib.sha256(early.to_bytes()).hexdigest().startswith(EARLY_MANIFEST)
    assert parse_manifest(early.to_bytes()) == early
    assert made.index_sha256.startswith(GOLDEN["samples.parquet"])


@pytest.mark.parametrize("name", ["manifest.json", "samples.parquet"])
@pytest.mark.parametrize("whole_file_bytes", [0, 1 << 20])
def test_a_bit_flipped_once_on_the_way_ends_nothing(make_split, serve, name, whole_file_bytes, monkeypatch):
    """In whichever answer about the file the bit flips: its size, its footer, one of its row groups."""
    monkeypatch.setattr("maskshards.shards.storage.base.WHOLE_FILE_BYTES", whole_file_bytes)
    made = make_split("flipped", [2, 3])
    server = serve(made.folder)
    want = [open_split(made.folder).index(number).sha256() for number in (0, 1)]
    for place in range(8):
        server.faults[name] = [""] * place + ["flip"]
        split = open_split(server.url)
        assert [split.index(number).sha256() for number in (0, 1)] == want
        split.close()
    assert server.faults[name]  # the last one was beyond the last answer


@pytest.mark.parametrize("name", ["manifest.json", "samples.parquet"])
def test_a_file_that_is_damaged_each_time_is_named(make_split, serve, name):
    made = make_split("spoiled", [2])
    server = serve(made.folder)
    server.faults[name] = ["", "flip"] * 8
    with pytest.raises(ManifestError, match=name):
        open_split(server.url).index(0)


FORKED = """
import os, sys
from maskshards.shards.format.manifest import open_split
split = open_split(sys.argv[1])
want = split.index(0).sha256()
with split._lock:  # another thread's, as far as the child can know
    child = os.fork()
    if not child:
        os._exit(0 if split.index(0).sha256() == want and split.index(1) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert split.index(0).sha256() == want
"""


def test_a_forked_child_reads_the_index_by_itself(make_split, serve):
    made = make_split("forked", [2, 3])
    for place in (str(made.folder), serve(made.folder).url):
        done = subprocess.run([sys.executable, "-c", FORKED, place], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
