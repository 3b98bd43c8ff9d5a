from maskshards.preprocess.destinations.journal import Journal, journal_name, read_journal, write_journal
from maskshards.preprocess.destinations.local import LocalDestination
from maskshards.preprocess.errors import Reject
from maskshards.shards.format.index import SampleEntry, ShardInfo

ENTRY = SampleEntry("a", "jpg", 2, 3, 512, 9, 1, 1536, 8, 2, 2560, 7, 3, (0, 4), (5, 1))
JOURNAL = Journal(
    "plan", "stamps", ShardInfo("t-00000.tar", 1, 4096, "f" * 64), (ENTRY,), (Reject("b.jpg", "CMYK"),)
)


def test_what_is_written_is_read(tmp_path):
    place = LocalDestination(tmp_path)
    assert read_journal(place, "t-00000.tar") is None
    write_journal(place, JOURNAL)
    assert read_journal(place, "t-00000.tar") == JOURNAL


def test_a_journal_that_cannot_be_read_is_none(tmp_path):
    place = LocalDestination(tmp_path)
    other = b'{"plan": 1, "sources": 2, "shard": {"x": 1}}'
    for data in (b"", b"{}", b"[]", b"[" * 9999, other, JOURNAL.to_bytes()[:-9]):
        place.write(journal_name("t-00000.tar"), data)
        assert read_journal(place, "t-00000.tar") is None


def test_a_journal_in_which_a_bit_flipped_is_none_or_says_the_same(tmp_path):
    place, good = LocalDestination(tmp_path), JOURNAL.to_bytes()
    path = tmp_path / journal_name("x")
    path.parent.mkdir()
    for bit in range(0, 8 * len(good), 5):
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        assert read_journal(place, "x") in (None, JOURNAL)
