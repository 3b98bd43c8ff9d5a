"""Figures of parts on disk, whatever ends the process in between."""

import json
from pathlib import Path

from maskshards.train.bench.journal import DONE, Journal, Result


def test_what_was_added_is_read_by_another_process_up_to_a_line_that_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "out" / "gpu.jsonl"
    first, second = Result("a", DONE, 1.5, {"ms": 2.0}), Result("b", DONE, 0.5)
    journal = Journal(path)
    for result in (first, second):
        journal.add(result)
    assert Journal(path, anew=False).results == [first, second]
    path.write_bytes(path.read_bytes()[:-9])
    assert Journal(path, anew=False).results == [first]
    assert json.loads(path.read_text().splitlines()[0])["figures"] == {"ms": 2.0}
    assert Journal(path).results == []


def test_the_part_in_hand_is_known_until_its_line_is_there(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "gpu.jsonl")
    assert journal.in_hand() == ("", None)
    journal.begin("a", 12.5)
    assert Journal(tmp_path / "gpu.jsonl", anew=False).in_hand() == ("a", 12.5)
    journal.add(Result("a", DONE, 0.0))
    assert journal.in_hand() == ("", None)
    journal.begin("b", None)
    assert journal.in_hand() == ("b", None)
