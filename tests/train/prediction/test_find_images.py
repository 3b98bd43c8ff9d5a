"""Images are found wherever people keep them, under names of their own, and the rest is counted."""

import os

import pytest

from maskshards.train.prediction.find_images import find_images
from maskshards.train.prediction.image_files import PredictError


@pytest.fixture
def folder(tmp_path):
    for name in (
        "a.jpg",
        "deep/b.png",
        "deep/er/a.jpg",
        "c.gif.JPG",
        "notes.txt",
        "deep/x.json",
        ".hidden.jpg",
    ):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "in"


def names(*inputs):
    return [name for _, name in find_images([str(one) for one in inputs]).images]


def test_a_folder_is_searched_in_depth_and_the_rest_is_counted(folder):
    found = find_images([str(folder)])
    assert [name for _, name in found.images] == ["a", "c.gif", "deep/b", "deep/er/a"]
    assert found.summary() == "passed over 3 files: 1 hidden, 1 .txt, 1 .json"


def test_several_inputs_keep_what_tells_them_apart(folder):
    assert names(folder / "a.jpg") == ["a"]
    assert names(folder / "deep" / "b.png", folder / "a.jpg") == ["a", "deep/b"]
    assert names(folder / "deep", folder) == ["a", "c.gif", "deep/b", "deep/er/a"]
    assert names(folder / "deep" / "er", folder / "deep" / "b.png") == ["b", "er/a"]
    assert names(folder / "*.jpg") == ["a"]
    assert names(folder / "**" / "*.jpg") == ["a", "deep/er/a"]


def test_endings_stay_where_only_they_tell_two_apart(tmp_path):
    for name in ("a.jpg", "a.png", "A.webp", "b.jpg", "c.jpg", "c.jpg.png"):
        (tmp_path / name).touch()
    assert names(tmp_path) == ["A.webp", "a.jpg", "a.png", "b", "c", "c.jpg"]
    (tmp_path / "c.png").touch()  # c.jpg keeps its ending, and so c.jpg.png must
    assert names(tmp_path)[4:] == ["c.jpg", "c.jpg.png", "c.png"]


@pytest.mark.parametrize("place", [".", "..", "results"])
def test_what_an_earlier_prediction_wrote_is_no_input(folder, place):
    output = folder / place
    for name in ("labels/a.png", "overlays/a.jpg", "scores/a.npy"):
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).touch()
    (output / "classes.csv").write_text("id,class,red,green,blue\n")
    found = find_images([str(folder)])
    assert len(found.images) == 4
    assert found.passed_over["folders of an earlier prediction"] == (0 if place == ".." else 3)


def test_folders_of_that_name_that_are_the_users_are_inputs(folder):
    (folder / "labels").mkdir()
    (folder / "labels" / "x.png").touch()
    assert "labels/x" in names(folder)


def test_links_pipes_and_loops_are_counted_and_not_followed(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "ok.png").touch()
    (folder / "loop").symlink_to(folder)
    (folder / "z.png").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.png")
    (folder / "dir.png").mkdir()
    (folder / "new\nline.png").touch()
    found = find_images([str(folder)])
    assert [name for _, name in found.images] == ["new\nline", "ok"]
    assert found.passed_over == {"no regular file": 2, "links to folders": 1}
    (folder / "one").mkdir()
    (folder / "one" / "deep.png").touch()
    assert names(folder / "**" / "*ee*.png") == ["deep"]
    assert names(folder / "loop" / "one" / "*.png") == ["deep"]  # a link that is named is meant


def test_nothing_to_read_says_what_there_is(tmp_path):
    (tmp_path / "IMG_1.RAW").touch()
    with pytest.raises(PredictError, match=r"holds no image .*passed over 1 file: 1 \.raw; read are \.jpg"):
        find_images([str(tmp_path)])
    with pytest.raises(PredictError, match="/no/such/place does not exist"):
        find_images(["/no/such/place"])
