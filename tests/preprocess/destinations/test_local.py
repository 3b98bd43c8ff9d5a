import hashlib

import pytest

from maskshards.preprocess.destinations.local import LocalDestination
from maskshards.preprocess.errors import BuildError


def test_files_appear_whole_and_scratch_files_vanish(tmp_path):
    place = LocalDestination(tmp_path / "out")
    with place.scratch("a.tar") as path:
        path.write_bytes(b"half")
        assert [name for name in place.names() if not name.startswith(".build/")] == []
        path.write_bytes(b"whole")
        place.publish(path, "a.tar", hashlib.sha256(b"whole").hexdigest())
    assert place.names() == ("a.tar",)
    assert place.read("a.tar") == b"whole"
    assert place.sha256("a.tar") == hashlib.sha256(b"whole").hexdigest()


def fail_while_writing(place):
    with place.scratch("a.tar") as path:
        path.write_bytes(b"half")
        raise RuntimeError


def test_an_error_while_writing_leaves_nothing(tmp_path):
    place = LocalDestination(tmp_path)
    with pytest.raises(RuntimeError):
        fail_while_writing(place)
    assert place.names() == ()


def test_small_files_reading_and_removing(tmp_path):
    place = LocalDestination(tmp_path)
    assert place.read("x") is None
    assert place.sha256("x") is None
    place.write(".build/x", b"1")
    place.write("y", b"2")
    assert place.names() == (".build/x", "y")
    place.finish()
    assert place.names() == ("y",)
    assert not (tmp_path / ".build").exists()
    place.finish()
    place.remove("y")
    place.remove("y")
    assert place.names() == ()


def test_a_link_in_the_place_of_the_build_folder_is_not_followed(tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/keep").write_text("x")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/.build").symlink_to(tmp_path / "theirs")
    place = LocalDestination(tmp_path / "out")
    for touch in (place.finish, lambda: place.write(".build/plan.json", b"{}")):
        with pytest.raises(BuildError, match=r"out/\.build is a link; remove it"):
            touch()
    assert [path.name for path in (tmp_path / "theirs").iterdir()] == ["keep"]
