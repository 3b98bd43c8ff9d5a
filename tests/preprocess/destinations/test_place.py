import pytest

from maskshards.preprocess.destinations.local import PLAN_FILE, LocalDestination
from maskshards.preprocess.destinations.object_store import ObjectDestination
from maskshards.preprocess.destinations.place import Place
from maskshards.preprocess.errors import BuildError


def test_folders_and_urls(tmp_path):
    assert Place(str(tmp_path)).split("training") == LocalDestination(tmp_path / "training")
    assert Place("s3://bucket/data/").split("training") == ObjectDestination("s3://bucket/data/training")


@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_what_is_unfinished(tmp_path, kind):
    out = str(tmp_path) if kind == "folder" else f"memory://{tmp_path.name}/unfinished"
    place = Place(out)
    assert place.unfinished() == []
    place.split("b").write(PLAN_FILE, b"{}")
    place.split("a").write(PLAN_FILE, b"{}")
    place.split("done").write("manifest.json", b"{}")
    place.split("val").write("manifest.json", b"{}")
    assert place.unfinished() == [place.split("a"), place.split("b")]
    assert place.complete() == [place.split("done"), place.split("val")]


def test_only_folders_are_locked(tmp_path):
    with Place(str(tmp_path / "out")).lock():
        assert (tmp_path / "out/.lock").exists()
    with Place("memory://x").lock(), Place("memory://x").lock():
        pass


def test_memory_is_not_shared_with_workers():
    Place("memory://x").check_workers(1)
    Place("s3://x").check_workers(8)
    with pytest.raises(BuildError, match="use --workers 1"):
        Place("memory://x").check_workers(2)
