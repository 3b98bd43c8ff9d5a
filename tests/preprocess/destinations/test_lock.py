import subprocess
import sys

import pytest

from maskshards.preprocess.destinations import lock
from maskshards.preprocess.destinations.lock import build_lock
from maskshards.preprocess.errors import BuildError

HOLDER = """
import sys
from pathlib import Path
from maskshards.preprocess.destinations.lock import build_lock
with build_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE_S", 0.0)


@pytest.mark.usefixtures("impatient")
def test_the_second_builder_is_refused_and_nothing_stays(tmp_path):
    with (
        build_lock(tmp_path),
        pytest.raises(BuildError, match="another builder is at work"),
        build_lock(tmp_path),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
    with build_lock(tmp_path):
        pass


def test_a_folder_that_was_made_for_nothing_goes_again(tmp_path):
    with build_lock(tmp_path / "a/b"):
        assert (tmp_path / "a/b").is_dir()
    assert list(tmp_path.iterdir()) == []


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path):
    (tmp_path / "theirs").write_text("x")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/.lock").symlink_to(tmp_path / "theirs")
    link = r"out/\.lock is a link, which is not followed; remove it"
    with pytest.raises(BuildError, match=link), build_lock(tmp_path / "out"):
        pass
    assert (tmp_path / "theirs").read_text() == "x"


@pytest.mark.usefixtures("impatient")
def test_parts_share_but_no_part_runs_twice_nor_beside_a_whole_build(tmp_path):
    with build_lock(tmp_path, (0, 2)), build_lock(tmp_path, (1, 2)):
        with pytest.raises(BuildError), build_lock(tmp_path, (1, 2)):
            pass
        with pytest.raises(BuildError), build_lock(tmp_path):
            pass
    with build_lock(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_killed_holder_leaves_no_lock(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline() == b"held\n"
        holder.kill()
    with build_lock(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
