"""What was made for nothing goes again, and nothing else."""

import pytest

from maskshards.shards.storage.made_folder import made_folder


@pytest.mark.parametrize("before", ["", "a", "a/b"])
def test_folders_that_were_made_for_nothing_go_again(tmp_path, before):
    (tmp_path / before).mkdir(parents=True, exist_ok=True)
    there = sorted(tmp_path.rglob("*"))
    with made_folder(tmp_path / "a/b"):
        assert (tmp_path / "a/b").is_dir()
    assert sorted(tmp_path.rglob("*")) == there


def test_what_holds_something_stays(tmp_path):
    with made_folder(tmp_path / "a/b"):
        (tmp_path / "a/note").touch()
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "a", tmp_path / "a/note"]
    with made_folder(tmp_path / "a/b"):
        (tmp_path / "a/b/c").touch()
    assert (tmp_path / "a/b/c").is_file()


def test_half_of_what_could_not_be_made_goes_again(tmp_path):
    name = "n" * 300  # longer than any file system takes
    with pytest.raises(OSError, match="File name too long"), made_folder(tmp_path / "a" / name):
        pass
    assert list(tmp_path.iterdir()) == []
