"""What is said about a place that is no split, and which splits are found below one that holds some."""

import pytest

from shards.errors import ManifestError, StoreError
from shards.manifest import open_split, open_splits
from shards.whereabouts import splits_below, what_is_there


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

    raw = tmp_path / "ADEChallengeData2016"
    (raw / "annotations/training").mkdir(parents=True)
    (raw / "images/training").mkdir(parents=True)
    (raw / "objectInfo150.txt").touch()
    with pytest.raises(
        ManifestError, match=r"preprocess build --dataset ade20k --root .*ADEChallengeData2016"
    ):
        open_split(raw)
    (raw / "objectInfo150.txt").unlink()
    with pytest.raises(ManifestError, match=r"preprocess build --dataset folder"):
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
    with pytest.raises(ManifestError, match="no such folder"):
        open_split(tmp_path / "nowhere")


def test_below_a_url_the_usual_names_are_tried(make_split, serve, tmp_path):
    made = make_split("served", [1])
    for name in ("validation", "other"):
        (tmp_path / name).symlink_to(made.folder)
    server = serve(tmp_path)
    assert splits_below(server.url) == ["validation"]
    assert splits_below(str(tmp_path)) == ["other", "validation"]
    assert "no manifest.json could be read" in what_is_there(server.url, StoreError("404"))
