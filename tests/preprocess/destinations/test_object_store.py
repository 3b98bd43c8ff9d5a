import hashlib

import fsspec
import pytest

from maskshards.preprocess.__main__ import main
from maskshards.preprocess.destinations import object_store
from maskshards.preprocess.destinations.object_store import ObjectDestination, TransferError
from maskshards.preprocess.errors import BuildError
from maskshards.shards.storage import object_store as shared
from maskshards.shards.storage.retry import RetrySettings
from tests.preprocess.folder_build import build_words, file_bytes


def remote(url):
    """Name -> bytes of all objects below a URL, read without the code under test."""
    files = fsspec.filesystem(url.partition("://")[0])
    base = url.partition("://")[2].strip("/") + "/"
    return {path.partition(base)[2]: files.cat_file(path) for path in files.find(url)}


@pytest.fixture
def url(tmp_path):
    return f"memory://{tmp_path.name}"


def test_a_build_to_objects_has_the_bytes_of_a_build_to_a_folder(make_root, tmp_path, url):
    root = make_root()
    assert main(build_words(root, tmp_path / "out")) == 0
    assert main(build_words(root, url)) == 0
    assert remote(url) == file_bytes(tmp_path / "out")
    assert main(["verify", url, "--against", str(root), "--workers", "1"]) == 0


def test_parts_and_finish_on_objects(make_root, tmp_path, url, capsys):
    root = make_root()
    assert main(build_words(root, tmp_path / "out")) == 0
    for part in ("1/2", "0/2"):
        assert main(["finish", url]) == 2
        assert main(build_words(root, url, "--part", part)) == 0
    assert "shards are not there yet" in capsys.readouterr().err
    assert main(["finish", url]) == 0
    assert remote(url) == file_bytes(tmp_path / "out")


def test_small_objects(url):
    place = ObjectDestination(url + "/training")
    assert place.read("x") is None
    assert place.sha256("x") is None
    assert place.names() == ()
    place.write(".build/x", b"1")
    place.write("y", b"22")
    assert (place.names(), place.read("y")) == ((".build/x", "y"), b"22")
    assert place.sha256("y") == hashlib.sha256(b"22").hexdigest()
    place.finish()
    assert place.names() == ("y",)
    place.remove("y")
    place.remove("y")
    assert place.names() == ()


ATTEMPTS = 3


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(object_store, "PATIENCE", RetrySettings(attempts=ATTEMPTS, first_delay_s=0.001))


class Broken:
    """A driver whose first puts break or arrive damaged."""

    def __init__(self, files, faults):
        self.files, self.faults = files, list(faults)

    def __getattr__(self, name):
        return getattr(self.files, name)

    def put_file(self, path, target):
        self.files.put_file(path, target)
        fault = self.faults.pop(0) if self.faults else None
        if fault == "damage":
            self.files.pipe_file(target, b"damaged")
        elif fault is not None:
            raise fault


@pytest.fixture
def breaking(monkeypatch):
    def breaking(*faults):
        files = Broken(fsspec.filesystem("memory"), faults)
        monkeypatch.setattr(shared, "file_system", lambda url: files)

    return breaking


@pytest.mark.parametrize(
    "fault", [ConnectionResetError("reset by peer"), RuntimeError("odd driver"), "damage"]
)
def test_a_put_that_fails_is_tried_again(make_root, tmp_path, url, breaking, fault):
    root = make_root()
    assert main(build_words(root, tmp_path / "out")) == 0
    breaking(*[fault] * (ATTEMPTS - 1))
    assert main(build_words(root, url)) == 0
    assert remote(url) == file_bytes(tmp_path / "out")


def test_a_store_that_stays_away_stops_the_build_which_goes_on_later(
    make_root, tmp_path, url, breaking, capsys
):
    root = make_root()
    assert main(build_words(root, tmp_path / "out")) == 0
    breaking(None, *[ConnectionResetError("reset by peer")] * ATTEMPTS)
    assert main(build_words(root, url)) == 2
    told = capsys.readouterr().err
    assert "cannot write memory://" in told
    assert "ConnectionResetError: reset by peer, 3 attempts in all" in told
    assert "training/.build/training-00000.tar.json" in remote(url)
    assert main(build_words(root, url)) == 0
    assert remote(url) == file_bytes(tmp_path / "out")


def test_damage_on_the_way_is_never_published(tmp_path, url, breaking):
    breaking(*["damage"] * ATTEMPTS)
    place = ObjectDestination(url)
    with place.scratch("a.tar") as path:
        path.write_bytes(b"whole")
        with pytest.raises(TransferError, match=r"arrived, .* was sent"):
            place.publish(path, "a.tar", hashlib.sha256(b"whole").hexdigest())
    assert not path.exists()


def test_a_bucket_that_is_not_there_is_named(make_root, url, breaking, capsys):
    breaking(FileNotFoundError("no such bucket"))
    assert main(build_words(make_root(), url)) == 2
    assert f"error: cannot write {url}/training/training-00000.tar: no such bucket" in capsys.readouterr().err


def test_a_builder_of_another_plan_is_refused_and_leaves_all_objects(make_root, url, breaking, capsys):
    root = make_root()
    breaking(None, *[ConnectionResetError("reset by peer")] * ATTEMPTS)
    assert main(build_words(root, url)) == 2
    before = remote(url)
    assert main(build_words(root, url, "--seed", "1")) == 2
    assert "unfinished build of another plan, and its builder may be at work" in capsys.readouterr().err
    assert remote(url) == before


def test_other_schemes_are_refused_by_name(make_root, capsys):
    assert main(build_words(make_root(), "ftp://host/x")) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ftp://host/x/training: shards can be built to a local folder, s3://")
    assert "attempts" not in told
    with pytest.raises(BuildError, match=r"to a local folder, s3://, gs://, hf://, memory://, not to ftp://"):
        ObjectDestination("ftp://host/x").names()
