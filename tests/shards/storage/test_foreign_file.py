"""Real pipes, devices, sockets and endless files: refused by their kind, at once, and never read."""

import errno
import hashlib
import os
import socket

import pytest

from maskshards.shards.storage import foreign_file
from maskshards.shards.storage.foreign_file import (
    MOST_LINE_CHARS,
    ForeignFileError,
    check_sparse,
    open_descriptor,
    open_regular,
    read_bytes,
    read_lines,
    read_text,
    sha256_of,
    why_unreadable,
)
from tests.shards.storage.descriptors import opened_below


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(bytes(range(200)))
    return path


def test_a_regular_file_is_read_and_seeked(file):
    with open_regular(file, 200) as opened:
        assert opened.read() == bytes(range(200))
        opened.seek(7)
        assert opened.read(3) == b"\x07\x08\x09"
        assert opened.readline() == b"\x0a"


def test_a_link_leads_to_its_file(file, tmp_path):
    (tmp_path / "link").symlink_to(file)
    with open_regular(tmp_path / "link") as opened:
        assert opened.read() == bytes(range(200))


def test_pipes_folders_devices_and_sockets_are_named_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        for path, kind in (
            (tmp_path / "pipe", "a pipe"),
            (tmp_path / "folder", "a folder"),
            (tmp_path / "socket", "a socket"),
            ("/dev/zero", "a device"),
        ):
            with pytest.raises(ForeignFileError, match=f"{path} is {kind}, expected a regular file"):
                open_regular(path, 10)


def test_a_name_that_is_exchanged_after_the_first_look_is_seen_by_the_second(file, tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    regular = os.stat(file)
    monkeypatch.setattr(foreign_file.os, "stat", lambda path: regular)
    with pytest.raises(ForeignFileError, match="is a pipe"):
        open_regular(tmp_path / "pipe")
    monkeypatch.undo()
    assert opened_below(tmp_path) == []


def test_more_bytes_than_allowed_are_refused(file):
    with pytest.raises(ForeignFileError, match=r"a\.json has 200 bytes, at most 199 are read"):
        open_regular(file, 199)


def test_a_file_that_grows_while_it_is_read_is_bounded(file):
    for read in (
        lambda opened: opened.read(),
        lambda opened: b"".join(iter(lambda: opened.read(50), b"")),
        lambda opened: opened.readlines(),
    ):
        file.write_bytes(b"x" * 100)
        with open_regular(file, 150) as opened:
            with open(file, "ab") as growing:
                growing.write(b"x" * 100)
            with pytest.raises(ForeignFileError, match=r"200 or more bytes, at most 150"):
                read(opened)


def test_a_file_whose_entry_says_empty_is_bounded_as_well():
    assert os.stat("/proc/self/maps").st_size == 0
    with open_regular("/proc/self/maps", 100) as opened, pytest.raises(ForeignFileError, match="at most 100"):
        opened.read()


def test_a_missing_file_and_a_missing_right_stay_what_they_are(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "gone")

    def refuse(path, flags):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    (tmp_path / "a").write_bytes(b"1")
    monkeypatch.setattr(foreign_file.os, "open", refuse)
    with pytest.raises(PermissionError):
        open_regular(tmp_path / "a")


def test_descriptors_are_given_with_their_size(file):
    descriptor, num_bytes = open_descriptor(file, 200)
    assert (os.pread(descriptor, 2, 5), num_bytes) == (b"\x05\x06", 200)
    os.close(descriptor)


def test_whole_files_as_bytes_text_and_digest(file):
    data = file.read_bytes()
    assert read_bytes(file, 200) == data
    assert sha256_of(file) == hashlib.sha256(data).hexdigest()
    file.write_bytes(b"\xef\xbb\xbfa\r\nb\rc\n")
    assert read_text(file, encoding="utf-8-sig") == file.read_text(encoding="utf-8-sig") == "a\nb\nc\n"
    for read in (read_bytes, read_text):
        with pytest.raises(ForeignFileError, match="at most 5"):
            read(file, 5)


def test_lines_come_without_mark_ends_and_empty_lines_at_the_end(file):
    file.write_bytes(b"\xef\xbb\xbfa \r\n\r\nb\rc\n\n\n")
    assert read_lines(file) == ["a ", "", "b", "c"]
    file.write_bytes(b"")
    assert read_lines(file) == []
    file.write_text("x" * MOST_LINE_CHARS + "\n" + "y" * MOST_LINE_CHARS)
    assert list(map(len, read_lines(file))) == [MOST_LINE_CHARS] * 2


def test_lists_with_longer_or_more_lines_than_any_are_refused(file, monkeypatch):
    file.write_text("a\n" + "x" * (MOST_LINE_CHARS + 1))
    with pytest.raises(ForeignFileError, match=r"a\.json, line 2 has more than 4096 characters"):
        read_lines(file)
    file.write_text("a\n" * 9)
    assert len(read_lines(file, 9)) == 9
    with pytest.raises(ForeignFileError, match=r"a\.json has more than 8 lines"):
        read_lines(file, 8)
    monkeypatch.setattr(foreign_file, "MOST_LIST_BYTES", 17)
    with pytest.raises(ForeignFileError, match="has 18 bytes, at most 17"):
        read_lines(file)


def test_why_a_file_cannot_be_read_is_said_in_a_few_words(file, tmp_path):
    def reason(path):
        with pytest.raises((OSError, UnicodeDecodeError)) as raised:
            read_text(path, 300)
        return why_unreadable(raised.value)

    file.write_bytes(b"a\xff")
    assert reason(file) == "it is not UTF-8 (invalid start byte)"
    assert reason(tmp_path / "gone") == "No such file or directory"
    assert reason(tmp_path).endswith("is a folder, expected a regular file; name the file itself")


def test_long_json_of_little_but_brackets_is_refused(monkeypatch):
    monkeypatch.setattr(foreign_file, "FREE_MARKS", 10)
    check_sparse("[" * 11)
    check_sparse(b"[12345678]" * 100, ",[{")
    check_sparse("[1,2,3,4,5,6,7]" * 100)
    for text, marks in (("[" * 13, "[{"), (b"{" * 13, "[{"), ("1," * 100, ","), (b"[1,2,3,4]" * 100, ",[{")):
        with pytest.raises(ValueError, match=r"^it holds \d+ values in \d+ characters; is it the right file"):
            check_sparse(text, marks)


def test_what_git_lfs_left_in_the_place_of_a_file_is_named(file):
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(ForeignFileError, match=r"a\.json is a pointer of Git LFS.*; run git lfs pull there"):
        read_text(file)
    file.write_text("version https://git-lfs" + " " * 1024)
    assert len(read_text(file)) == 1047
