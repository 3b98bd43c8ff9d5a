"""Index rows: every value covered by a digest, and nothing accepted that no tar could hold."""

from dataclasses import replace

import pytest

from maskshards.shards.errors import ManifestError
from maskshards.shards.format.index import SampleEntry, ShardIndex, check_rows


def test_entries_survive_json(make_rows):
    entry = make_rows([1])[1][0][0]
    assert SampleEntry.from_json(entry.to_json()) == entry
    with pytest.raises(KeyError):
        SampleEntry.from_json({})


def test_every_value_is_in_the_digest(make_rows):
    rows = make_rows([6])[1][0]
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
def test_rows_that_no_shard_can_have_are_refused(change, says, make_rows):
    (shard,), (entries,) = make_rows([2])
    check_rows(ShardIndex.of_entries(entries), shard)
    rows = ShardIndex.of_entries([replace(entries[0], **change), entries[1]])
    with pytest.raises(ManifestError, match=says) as caught:
        check_rows(rows, shard)
    assert shard.name in str(caught.value)


def test_a_shard_of_another_size_or_count_is_refused(make_rows):
    (shard,), (entries,) = make_rows([2])
    for lie in ({"bytes": shard.bytes + 512}, {"samples": 3}):
        with pytest.raises(ManifestError, match=shard.name):
            check_rows(ShardIndex.of_entries(entries), replace(shard, **lie))
