"""Damage of every kind is found, and named with shard and key; an intact split has no fault."""

import hashlib
import shutil
from argparse import ArgumentParser
from dataclasses import replace

import google_crc32c
import numpy as np
import pytest

from maskshards.shards.commands.verify import MAX_LISTED, add_arguments, as_text, check_split, run
from maskshards.shards.errors import ManifestError
from maskshards.shards.format.manifest import open_split, write_split
from maskshards.shards.format.record import Record
from maskshards.shards.format.rle import encode_label_map
from maskshards.shards.format.tar import TarWriter


@pytest.fixture(scope="module")
def intact(make_split):
    return make_split("intact", [3, 0, 4])


@pytest.fixture
def copied(intact, tmp_path):
    """A copy to break: (folder, split, its first shard's rows)."""
    folder = tmp_path / "split"
    shutil.copytree(intact.folder, folder)
    split = open_split(folder)
    return folder, split, split.index(0)


def edit(path, offset, change):
    data = bytearray(path.read_bytes())
    data[offset] ^= change
    path.write_bytes(data)


def rewritten(folder, change):
    """Rewrite the first shard and the index so that all checksums fit a sample that `change` altered."""
    split = open_split(folder)
    entries = [[rows.entry(n) for n in range(len(rows))] for rows in map(split.index, range(3))]
    name = split.manifest.shards[0].name
    data = bytearray((folder / name).read_bytes())
    entry = change(data, entries[0][1])
    spans = {
        m: (getattr(entry, f"{m}_offset"), getattr(entry, f"{m}_size")) for m in ("image", "json", "runs")
    }
    sums = {
        f"{m}_crc32c": google_crc32c.value(bytes(data[at : at + size])) for m, (at, size) in spans.items()
    }
    entries[0][1] = replace(entry, **sums)
    (folder / name).write_bytes(data)
    first = replace(split.manifest.shards[0], sha256=hashlib.sha256(data).hexdigest())
    write_split(folder, replace(split.manifest, shards=(first, *split.manifest.shards[1:])), entries)


def test_an_intact_split_has_no_fault(intact):
    for deep in (False, True):
        verdict = check_split(open_split(intact.folder), deep=deep)
        assert verdict["ok"], verdict
        assert verdict["samples_checked"] == 7
        files = [*intact.folder.glob("*.tar"), intact.folder / "samples.parquet"]
        assert verdict["bytes_read"] == sum(path.stat().st_size for path in files)
        assert verdict["masks_checked"] == sum(len(set(m[m != 65535])) for _, m in intact.truth.values())


@pytest.mark.parametrize(
    ("member", "says"),
    [("image", "crc32c"), ("json", "crc32c"), ("runs", "crc32c"), ("header", "header or padding")],
)
def test_a_flipped_bit_is_named_with_shard_and_key(copied, member, says):
    folder, split, rows = copied
    offset = rows.image_offset[1] - 400 if member == "header" else getattr(rows, f"{member}_offset")[1]
    edit(folder / split.manifest.shards[0].name, offset, 4)
    verdict = check_split(open_split(folder))
    named = [(fault["shard"], fault["key"]) for fault in verdict["faults"]]
    assert named == [(split.manifest.shards[0].name, rows.keys[1]), (split.manifest.shards[0].name, "")]
    assert says in verdict["faults"][0]["what"]
    assert "sha256" in verdict["faults"][1]["what"]


def test_a_bit_in_padding_or_end_is_found(copied):
    folder, split, rows = copied
    shard = folder / split.manifest.shards[0].name
    edit(shard, rows.image_offset[0] + rows.image_size[0], 1)
    edit(shard, shard.stat().st_size - 1, 1)
    says = " ".join(fault["what"] for fault in check_split(open_split(folder))["faults"])
    assert "padding" in says
    assert "two empty blocks" in says


@pytest.mark.parametrize("sample", [None, 100])
def test_missing_cut_and_longer_shards_are_found(copied, sample):
    folder, split, _ = copied
    names = [shard.name for shard in split.manifest.shards]
    (folder / names[0]).unlink()
    (folder / names[1]).write_bytes(bytes(1536))
    (folder / names[2]).write_bytes((folder / names[2]).read_bytes()[:-512])
    faults = check_split(open_split(folder), sample)["faults"]
    assert {fault["shard"] for fault in faults} == set(names)


def test_a_damaged_index_is_found_and_the_other_shards_are_still_checked(copied):
    folder, split, _ = copied
    edit(folder / "samples.parquet", 40, 255)
    verdict = check_split(open_split(folder))
    places = [fault["shard"] for fault in verdict["faults"]]
    assert places[:2] == ["samples.parquet", split.manifest.shards[0].name]
    assert verdict["samples_checked"] == 4


FILES = ("samples.parquet", "manifest.json", "*-00000.tar", "*-00001.tar")


@pytest.mark.parametrize(
    ("name", "most"),
    [*((name, 150) for name in FILES), pytest.param("*-00001.tar", 10_000, marks=pytest.mark.slow)],
)
def test_every_flipped_bit_of_every_file_is_found(intact, tmp_path, name, most):
    """One bit of each of so many bytes at random; the shard without samples is small enough for all."""
    folder = tmp_path / "split"
    shutil.copytree(intact.folder, folder)
    (path,) = folder.glob(name)
    good = path.read_bytes()
    rng = np.random.default_rng(len(good))
    places = rng.permutation(len(good))[:most]
    for place in places:
        edit(path, place, 1 << int(rng.integers(8)))
        try:
            assert not check_split(open_split(folder))["ok"], place
        except ManifestError:
            assert name == "manifest.json"
        path.write_bytes(good)
    assert check_split(open_split(folder))["ok"]


def test_a_manifest_that_changes_no_value_is_told_from_the_written_one(intact, tmp_path):
    folder = tmp_path / "split"
    shutil.copytree(intact.folder, folder)
    manifest = folder / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b"\n ", b"\n\t", 1))
    (fault,) = check_split(open_split(folder))["faults"]
    assert fault["shard"] == "manifest.json"
    assert "with the same values" in fault["what"]


def test_sets_of_early_versions_are_checked_by_their_values(intact, tmp_path):
    folder = tmp_path / "split"
    shutil.copytree(intact.folder, folder)
    early = replace(open_split(folder).manifest, index_sha256="")
    (folder / "manifest.json").write_bytes(early.to_bytes())
    verdict = check_split(open_split(folder))
    assert verdict["ok"]
    assert "of samples.parquet, values alone" in as_text({"splits": [verdict]})


def lie_about_height(data, entry):
    return replace(entry, height=entry.height + 1)


def lie_about_areas(data, entry):
    return replace(entry, areas=tuple(area + 1 for area in entry.areas))


def not_an_image(data, entry):
    data[entry.image_offset : entry.image_offset + 4] = b"GIF8"
    return entry


@pytest.mark.parametrize(
    ("change", "says"),
    [(lie_about_height, "not those of the index"), (lie_about_areas, "not those"), (not_an_image, "opened")],
)
def test_lies_with_fitting_checksums_are_found(copied, change, says):
    folder, _, rows = copied
    rewritten(folder, change)
    verdict = check_split(open_split(folder))
    assert [(f["key"], says in f["what"]) for f in verdict["faults"]] == [(rows.keys[1], True)]


def test_only_deep_finds_what_only_decoding_shows(copied):
    folder, _, rows = copied

    def zero_the_scan(data, entry):
        middle = entry.image_offset + entry.image_size // 2
        data[middle : entry.image_offset + entry.image_size] = bytes(entry.image_size - entry.image_size // 2)
        return entry

    rewritten(folder, zero_the_scan)
    assert check_split(open_split(folder))["ok"]
    assert [fault["key"] for fault in check_split(open_split(folder), deep=True)["faults"]] == [rows.keys[1]]


def test_classes_beyond_the_manifest_and_repeated_keys_are_found(copied, tmp_path):
    _, split, _ = copied
    folder, shards, entries = tmp_path / "twice", [], []
    folder.mkdir()
    image = (tmp_path / "split" / split.manifest.shards[0].name).read_bytes()
    first = split.index(0).entry(0)
    image = image[first.image_offset :][: first.image_size]
    class_map = np.full((first.height, first.width), 149, np.uint16)
    record = Record("same", image, first.image_format, *class_map.shape, encode_label_map(class_map), {})
    for number in range(2):
        with TarWriter(folder / f"training-{number:05d}.tar") as writer:
            entries.append([writer.add(record)])
        info = replace(split.manifest.shards[0], name=f"training-{number:05d}.tar", samples=1)
        shards.append(replace(info, bytes=writer.num_bytes, sha256=writer.sha256))
    write_split(folder, replace(split.manifest, shards=tuple(shards)), entries)
    (fault,) = check_split(open_split(folder))["faults"]
    assert (fault["shard"], fault["key"]) == ("training-00001.tar", "same")
    assert "training-00000.tar" in fault["what"]
    write_split(folder, replace(split.manifest, shards=tuple(shards), classes=("a", "b")), entries)
    assert "class id 149" in check_split(open_split(folder))["faults"][0]["what"]


def test_a_sample_of_n_reads_n(intact):
    verdict = check_split(open_split(intact.folder), 3)
    assert (verdict["ok"], verdict["samples_checked"]) == (True, 3)
    assert check_split(open_split(intact.folder), 1000)["samples_checked"] == 7


def test_the_command_reads_all_splits_and_says_what_is_wrong(intact, tmp_path):
    for name in ("training", "validation"):
        shutil.copytree(intact.folder, tmp_path / name)
    parser = ArgumentParser()
    add_arguments(parser)
    assert run(parser.parse_args([str(tmp_path)]))["ok"]
    (tmp_path / "validation/training-00002.tar").unlink()
    facts = run(parser.parse_args([str(tmp_path)]))
    assert [split["ok"] for split in facts["splits"]] == [True, False]
    assert "1 FAULT" in as_text(facts)
    assert "training-00002.tar: " in as_text(facts)
    with pytest.raises(ValueError, match="at least 1"):
        run(parser.parse_args([str(tmp_path), "--sample", "0"]))


def test_a_flood_of_faults_is_counted(make_split):
    made = make_split("flood", [MAX_LISTED + 20])
    shard = made.folder / "training-00000.tar"
    rows = open_split(made.folder).index(0)
    data = bytearray(shard.read_bytes())
    for offset in rows.runs_offset:
        data[offset] ^= 1
    shard.write_bytes(data)
    verdict = check_split(open_split(made.folder))
    assert (verdict["num_faults"], len(verdict["faults"])) == (MAX_LISTED + 21, MAX_LISTED)
    assert "and 21 more" in as_text({"splits": [verdict]})


@pytest.mark.parametrize(("limit", "reads"), [(1, [3, 0, 4]), (1 << 30, [1, 0, 1])])
def test_samples_are_read_in_stretches_of_bounded_size(intact, monkeypatch, limit, reads):
    monkeypatch.setattr("maskshards.shards.commands.verify.READ_BYTES", limit)
    split = open_split(intact.folder)
    asked, read = [], split.store.read
    monkeypatch.setattr(split.store, "read", lambda name, *span: asked.append(name) or read(name, *span))
    assert check_split(split) == check_split(open_split(intact.folder))
    names = [shard.name for shard in split.manifest.shards]
    assert [asked.count(name) for name in names] == [count + 1 for count in reads]  # and the end of each


def test_a_tar_that_the_manifest_does_not_list_is_found(copied):
    folder, _, _ = copied
    shutil.copy(folder / "training-00000.tar", folder / "training-00007.tar")
    (folder / "README").touch()
    (fault,) = check_split(open_split(folder))["faults"]
    assert fault["shard"] == "training-00007.tar"
    assert "does not list" in fault["what"]
