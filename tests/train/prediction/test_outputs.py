"""Files of a prediction: what they hold, that they are whole, and that nobody's labels are overwritten."""

import csv

import numpy as np
import pytest
from PIL import Image

from maskshards.train.prediction.image_files import PredictError
from maskshards.train.prediction.outputs import LARGEST_PICTURE_PX, Outputs
from maskshards.train.report.palette import class_colours

NAMES = ("sky", "sea", "<sand>", "tür")
IMAGE = np.full((4, 6, 3), 90, np.uint8)
CLASS_MAP = np.arange(24, dtype=np.uint8).reshape(4, 6) % 4


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_labels_pictures_and_the_table_of_classes(tmp_path):
    outputs = Outputs(tmp_path, NAMES)
    outputs.prepare()
    outputs.write("deep/a", IMAGE, CLASS_MAP)
    assert files(tmp_path) == ["classes.csv", "labels/deep/a.png", "overlays/deep/a.jpg"]
    with Image.open(tmp_path / "labels/deep/a.png") as labels:
        assert labels.mode == "L"
        assert np.array_equal(np.array(labels), CLASS_MAP)
    with (tmp_path / "classes.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == list(NAMES)
    assert [int(rows[2][part]) for part in ("red", "green", "blue")] == class_colours(4)[2].tolist()
    assert "source_value" not in rows[0]


@pytest.mark.parametrize("palette", [False, True])
def test_values_of_the_source_and_palettes(tmp_path, palette):
    values = np.array([1, 2, 3, 200], np.uint16)
    outputs = Outputs(tmp_path, NAMES, overlay=False, palette=palette, values=values, source_values=values)
    outputs.prepare()
    outputs.write("a", IMAGE, CLASS_MAP)
    assert files(tmp_path) == ["classes.csv", "labels/a.png"]
    with Image.open(tmp_path / "labels/a.png") as labels:
        assert labels.mode == ("P" if palette else "L")
        assert np.array_equal(np.array(labels), values[CLASS_MAP])
        if palette:
            assert np.array_equal(np.array(labels.convert("RGB")), class_colours(4)[CLASS_MAP])
    assert (tmp_path / "classes.csv").read_text().splitlines()[4].endswith(",200")


def test_no_class_name_is_a_formula_in_a_spreadsheet(tmp_path):
    Outputs(tmp_path, ("=cmd|' /C calc'!A0", "sky"), overlay=False).prepare()
    with (tmp_path / "classes.csv").open(newline="", encoding="utf-8") as file:
        assert [row["class"] for row in csv.DictReader(file)] == ["'=cmd|' /C calc'!A0", "sky"]


def test_many_values_take_16_bits_and_no_palette(tmp_path):
    names = tuple(map(str, range(300)))
    outputs = Outputs(tmp_path, names, overlay=False)
    outputs.prepare()
    outputs.write("a", IMAGE, CLASS_MAP.astype(np.uint16) + 290)
    with Image.open(tmp_path / "labels/a.png") as labels:
        assert labels.mode == "I;16"
        assert np.array(labels).max() == 293
    with pytest.raises(PredictError, match="a palette has 256 colours"):
        Outputs(tmp_path, names, palette=True).prepare()


def test_pictures_of_large_images_are_smaller(tmp_path):
    outputs = Outputs(tmp_path, NAMES)
    outputs.prepare()
    width = 2 * LARGEST_PICTURE_PX + 2
    outputs.write("a", np.zeros((4, width, 3), np.uint8), np.zeros((4, width), np.uint8))
    with Image.open(tmp_path / "overlays/a.jpg") as picture:
        assert picture.width < LARGEST_PICTURE_PX + 200
    with Image.open(tmp_path / "labels/a.png") as labels:
        assert labels.size == (width, 4)


def test_scores_are_read_by_numpy(tmp_path):
    scores = np.random.default_rng(0).random((4, 3, 2), np.float32)
    Outputs(tmp_path, NAMES).write_scores("a", scores)
    found = np.load(tmp_path / "scores/a.npy", allow_pickle=False)
    assert found.dtype == np.float16
    assert np.allclose(found, scores, atol=1e-3)


def test_labels_that_no_prediction_wrote_are_not_overwritten(tmp_path):
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.png").write_text("ground truth")
    with pytest.raises(PredictError, match="labels of yours could be overwritten; give another --output"):
        Outputs(tmp_path, NAMES).prepare()
    assert files(tmp_path) == ["labels/a.png"]
    (tmp_path / "classes.csv").write_text("id,class,red,green,blue\n")
    Outputs(tmp_path, NAMES).prepare()  # the folder of an earlier prediction


def test_a_link_that_leads_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "labels").symlink_to(tmp_path / "outside")
    with pytest.raises(PredictError, match="is a link that leads out of"):
        Outputs(tmp_path / "out", NAMES).write("a", IMAGE, CLASS_MAP)
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_file_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    def save_half(picture, target, **_):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", save_half)
    with pytest.raises(OSError, match=r"cannot be written \(No space left on device\): '.*/labels/a\.png'"):
        Outputs(tmp_path, NAMES).write("a", IMAGE, CLASS_MAP)
    assert files(tmp_path) == []


def test_a_file_in_the_place_of_the_folder_is_told(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(PredictError, match="out is a file; give a folder"):
        Outputs(tmp_path / "out", NAMES).prepare()


def test_names_as_long_as_a_file_system_takes(tmp_path):
    Outputs(tmp_path, NAMES).write("x" * 250, IMAGE, CLASS_MAP)
    assert len(files(tmp_path)) == 2
