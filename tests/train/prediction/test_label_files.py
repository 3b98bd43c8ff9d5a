"""Images become files in any grouping; a bad one is kept with its reason, a full disk ends the run."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskshards.train.prediction.label_files import Pace, batches, label_files
from maskshards.train.prediction.outputs import Outputs

NAMES = ("even", "odd")


class Parity:
    """Labels each pixel by whether its red is odd; images of one height make it fail."""

    num_classes = 2

    def __init__(self, bad_height=None):
        self.groups, self.bad_height = [], bad_height

    def label(self, arrays, mosaic):
        self.groups.append(len(arrays))
        if any(len(array) == self.bad_height for array in arrays):
            raise ValueError("the model's scores hold NaN\nand more")
        return [array[..., 0] % 2 for array in arrays]

    def scores(self, image):
        odd = (image[..., 0] % 2).astype(np.float32)
        return np.stack([1 - odd, odd])


@pytest.fixture
def images(tmp_path):
    rng, found = np.random.default_rng(0), []
    (tmp_path / "in").mkdir()
    for k in range(7):
        path = tmp_path / "in" / f"{k}.png"
        Image.fromarray(rng.integers(0, 256, (10 + k, 12, 3), dtype=np.uint8)).save(path)
        found.append((path, f"{k}"))
    return found


def read(folder):
    return {path.stem: np.array(Image.open(path)) for path in sorted((folder / "labels").glob("*.png"))}


@pytest.mark.parametrize("pace", [Pace(1, 1), Pace(3, 2), Pace(100, 4), Pace(2, 1, scores=True)])
def test_every_grouping_writes_the_same(pace, images, tmp_path):
    ticks = []
    report = label_files(Parity(), images, Outputs(tmp_path / "out", NAMES), pace, ticks.append)
    assert (report.labelled, report.failed, sum(ticks)) == (7, [], 7)
    found = read(tmp_path / "out")
    for path, name in images:
        assert np.array_equal(found[name], np.array(Image.open(path))[..., 0] % 2)
    assert len(list((tmp_path / "out").glob("scores/*.npy"))) == (7 if pace.scores else 0)


def test_images_go_through_the_model_together(images, tmp_path):
    model = Parity()
    label_files(model, images, Outputs(tmp_path / "out", NAMES), Pace(3, 2))
    assert model.groups == [3, 3, 1]


def test_large_images_are_not_held_together(monkeypatch):
    monkeypatch.setattr("maskshards.train.prediction.label_files.BATCH_PX", 100)
    ones = [
        (Path(str(k)), "", np.zeros((height, 10, 3), np.uint8)) for k, height in enumerate((4, 5, 20, 1, 1))
    ]
    assert [len(one) for one in batches(iter(ones), Pace(8))] == [2, 1, 2]
    assert [len(one) for one in batches(iter(ones), Pace(8, scores=True))] == [1] * 5


def test_bad_files_and_bad_answers_are_kept_with_their_reason(images, tmp_path):
    images[1][0].write_bytes(images[1][0].read_bytes()[:50])
    images[2][0].unlink()
    report = label_files(Parity(bad_height=14), images, Outputs(tmp_path / "out", NAMES), Pace(7, 2))
    assert report.labelled == 4
    reasons = {path.stem: reason for path, reason in report.failed}
    assert sorted(reasons) == ["1", "2", "4"]
    assert "get a good copy" in reasons["1"]
    assert reasons["4"] == "cannot be labelled: the model's scores hold NaN"
    assert sorted(read(tmp_path / "out")) == ["0", "3", "5", "6"]


def test_what_fails_the_outputs_ends_the_run(images, tmp_path, monkeypatch):
    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Outputs, "write", full)
    with pytest.raises(OSError, match="No space left"):
        label_files(Parity(), images, Outputs(tmp_path / "out", NAMES), Pace(2, 2))


def test_large_images_that_are_shrunk_are_counted(images, tmp_path, monkeypatch):
    monkeypatch.setattr("maskshards.train.prediction.label_files.LARGE_PX", 13 * 12)
    assert label_files(Parity(), images, Outputs(tmp_path / "a", NAMES), Pace()).shrunk == 3
    assert label_files(Parity(), images, Outputs(tmp_path / "b", NAMES), Pace(mosaic=True)).shrunk == 0


def test_scores_of_what_is_too_large_are_refused_by_name(images, tmp_path, monkeypatch):
    monkeypatch.setattr("maskshards.train.prediction.label_files.MOST_SCORES", 12 * 12 * 2)
    report = label_files(Parity(), images, Outputs(tmp_path / "out", NAMES), Pace(scores=True))
    assert report.labelled == 3
    assert {reason for _, reason in report.failed} == {"is too large for --scores; cut it into parts"}
