"""Whole under the name, or nothing there."""

from pathlib import Path

import pytest

from maskshards.shards.storage import atomic_write
from maskshards.shards.storage.atomic_write import naming, replacing, write_through


def test_replacing_leaves_the_old_file_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), replacing(path) as hidden:
        (hidden / "below a file that is not there").write_text("half")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["facts.json"]


def test_replacing_shows_the_new_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    (tmp_path / ".a.json.part").write_text("of a killed process")
    with replacing(path) as hidden:
        hidden.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [one.name for one in tmp_path.iterdir()] == ["a.json"]


def test_pieces_are_told_and_all_bytes_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic_write, "PIECE_BYTES", 4)
    sizes: list[int] = []
    path = tmp_path / "a"
    write_through(path, b"0123456789", lambda: sizes.append(len(sizes)))
    assert (path.read_bytes(), sizes) == (b"0123456789", [0, 1, 2])
    write_through(tmp_path / "empty", b"")
    assert (tmp_path / "empty").read_bytes() == b""


def test_an_error_without_a_file_gets_one(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"No space left on device.*a\.bin"), naming(tmp_path / "a.bin"):
        raise OSError(28, "No space left on device")


def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="link"):
        write_through(tmp_path / "link", b"x")
    assert not (tmp_path / "target").exists()
