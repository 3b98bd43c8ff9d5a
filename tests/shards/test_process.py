"""A working folder that is gone; that a child ends with its parent is shown by test_pool and test_gpu."""

import pytest

from maskshards.shards.errors import StoreError
from maskshards.shards.process import check_working_folder


def test_a_working_folder_that_was_deleted_is_named(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    check_working_folder()
    gone.rmdir()
    with pytest.raises(StoreError, match="the working folder was deleted; cd into one"):
        check_working_folder()
