import errno
import os

import pytest

from maskshards.preprocess.errors import RejectedInput, SourceUnavailable
from maskshards.preprocess.inputs import source_files
from maskshards.preprocess.inputs.source_files import file_stamp, may_pass, patiently, read_unchanged


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """The pauses that were asked for, none of them waited for."""
    asked = []
    monkeypatch.setattr(source_files, "_wait", asked.append)
    return asked


def test_what_is_no_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RejectedInput, match="pipe is no regular file"):
        read_unchanged(tmp_path, "pipe")


def test_a_file_that_changes_while_it_is_read(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"x")
    real, calls = os.fstat, []

    def fstat(handle):
        calls.append(handle)
        if len(calls) == 3:  # the first is of the opening
            os.utime(tmp_path / "a", ns=(5, 5))
        return real(handle)

    monkeypatch.setattr(os, "fstat", fstat)
    with pytest.raises(RejectedInput, match="a changed while it was read"):
        read_unchanged(tmp_path, "a")


@pytest.mark.parametrize("code", [errno.EIO, errno.EMFILE, errno.ESTALE, errno.ETIMEDOUT])
def test_a_fault_that_passes_costs_nothing_but_time(tmp_path, monkeypatch, pauses, code):
    (tmp_path / "a").write_bytes(b"good")
    real, left = source_files._read_once, [code, code]

    def read(root, path):
        if left:
            raise OSError(left.pop(), "for a moment")
        return real(root, path)

    monkeypatch.setattr(source_files, "_read_once", read)
    assert read_unchanged(tmp_path, "a") == b"good"
    assert pauses == [0.0, source_files.PAUSES_S[0]]


def test_a_fault_that_stays_is_the_systems_and_never_the_samples(tmp_path, monkeypatch):
    def read(root, path):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(source_files, "_read_once", read)
    with pytest.raises(SourceUnavailable, match=r"a cannot be read now: Input/output error \(6 attempts\)"):
        read_unchanged(tmp_path, "a")


def test_a_folder_that_is_away_is_waited_for_and_a_missing_file_is_not(tmp_path, monkeypatch, pauses):
    folder = tmp_path / "images"
    folder.mkdir()
    with pytest.raises(RejectedInput, match="b cannot be read: No such file"):
        read_unchanged(tmp_path, "images/b")
    assert pauses == [0.0]  # looked for once more, since its folder might have come back
    (folder / "a").write_bytes(b"x")
    folder.rename(tmp_path / "away")
    with pytest.raises(SourceUnavailable, match="its folder is gone"):
        read_unchanged(tmp_path, "images/a")
    with pytest.raises(SourceUnavailable, match="its folder is gone"):
        file_stamp(f"{tmp_path}/images/a")
    monkeypatch.setattr(source_files, "_wait", lambda _: (tmp_path / "away").rename(folder))
    assert read_unchanged(tmp_path, "images/a") == b"x"
    assert file_stamp(f"{tmp_path}/images/b") == "gone"


def test_rights_are_no_passing_fault(tmp_path):
    def forbidden():
        raise PermissionError(errno.EACCES, "Permission denied")

    with pytest.raises(PermissionError):
        patiently(forbidden, f"{tmp_path}/a")
    assert not may_pass(OSError(errno.EACCES, ""))
    assert not may_pass(OSError("a decoder's"))
    assert may_pass(TimeoutError("slow"))
    assert may_pass(ConnectionResetError())


def test_the_stamp_sees_a_file_of_equal_size_and_time_in_its_place(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"abcd")
    two.write_bytes(b"efgh")
    for path in (one, two):
        os.utime(path, ns=(7, 7))
    before = file_stamp(str(one))
    assert before == file_stamp(str(one))
    os.replace(two, one)
    assert file_stamp(str(one)) != before
