"""What is said about a place that is no split, and which splits are found below one that holds some."""

import socket

import pytest

from maskshards.shards.errors import ManifestError, StoreError, UnreachableError
from maskshards.shards.format.locate import splits_below, what_is_there
from maskshards.shards.format.manifest import open_split, open_splits
from maskshards.shards.storage.http import HttpStore
from maskshards.shards.storage.retry import RetrySettings


def test_opening_says_what_was_found_instead(make_split, tmp_path):
    made = make_split("found", [1])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "training").symlink_to(made.folder)
    (tmp_path / "out" / "validation").symlink_to(made.folder)
    with pytest.raises(ManifestError, match=r"splits training, validation; name one"):
        open_split(tmp_path / "out")
    assert [split.base for split in open_splits(tmp_path / "out")] == [
        str(tmp_path / "out" / name) for name in ("training", "validation")
    ]
    assert [split.base for split in open_splits(made.folder)] == [str(made.folder)]

    with pytest.raises(ManifestError, match=r"out/training is one split; give the folder .*out$"):
        open_split(tmp_path / "out" / "training" / "training")  # a training run given a split as its root

    raw = tmp_path / "ADEChallengeData2016"
    (raw / "annotations/training").mkdir(parents=True)
    (raw / "images/training").mkdir(parents=True)
    (raw / "objectInfo150.txt").touch()
    with pytest.raises(
        ManifestError, match=r"maskshards build --dataset ade20k --root .*ADEChallengeData2016"
    ):
        open_split(raw)
    with pytest.raises(ManifestError, match=r"no such folder; .*build --dataset ade20k --root .*Challenge"):
        open_split(raw / "training")  # what a training run asks for whose root is the raw data
    (raw / "objectInfo150.txt").unlink()
    with pytest.raises(ManifestError, match=r"maskshards build --dataset folder"):
        open_split(raw)

    (tmp_path / "unfinished").mkdir()
    with pytest.raises(ManifestError, match="it is empty"):
        open_split(tmp_path / "unfinished")
    (tmp_path / "unfinished" / "training-00000.tar").touch()
    with pytest.raises(ManifestError, match="not finished"):
        open_split(tmp_path / "unfinished")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.gif").touch()
    with pytest.raises(ManifestError, match=r"it holds cat\.gif"):
        open_splits(tmp_path / "photos")
    with pytest.raises(ManifestError, match="no such folder; give a folder"):
        open_split(tmp_path / "nowhere" / "training")
    with pytest.raises(ManifestError, match=r"no such folder; .* holds the splits training, validation"):
        open_split(tmp_path / "out" / "trianing")


def test_below_a_url_the_usual_names_are_tried(make_split, serve, tmp_path):
    made = make_split("served", [1])
    for name in ("validation", "other"):
        (tmp_path / name).symlink_to(made.folder)
    server = serve(tmp_path)
    assert splits_below(server.url) == ["validation"]
    assert splits_below(str(tmp_path)) == ["other", "validation"]
    assert "no manifest.json could be read" in what_is_there(server.url, StoreError("404"))


def test_a_server_that_does_not_answer_is_asked_once(monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/out"
    opened = []

    def impatient(place):
        opened.append(place)
        return HttpStore(place, RetrySettings(attempts=2, first_delay_s=0.001))

    monkeypatch.setattr("maskshards.shards.format.manifest.open_store", impatient)
    monkeypatch.setattr("maskshards.shards.format.locate.open_store", impatient)
    with pytest.raises(ManifestError, match="no answer") as caught:
        open_splits(url)
    assert isinstance(caught.value.__cause__, UnreachableError)
    assert opened == [url]


def test_a_file_in_place_of_its_folder_is_named(make_split):
    folder = make_split("pointed", [1]).folder
    with pytest.raises(ManifestError, match=rf"it is a file; give the folder that holds it, {folder}$"):
        open_split(folder / "manifest.json")


def test_a_tilde_is_the_users_own_folder(make_split, monkeypatch):
    folder = make_split("homely", [1]).folder
    monkeypatch.setenv("HOME", str(folder.parent))
    assert open_split(f"~/{folder.name}").base == str(folder)
    assert [split.base for split in open_splits(f"~/{folder.name}/")] == [str(folder)]
    with pytest.raises(ManifestError, match="~/nothing: there is no such folder"):
        open_split("~/nothing")
    with pytest.raises(ManifestError, match="~nobody-of-that-name/x: there is no such folder"):
        open_split("~nobody-of-that-name/x")
