import csv
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from maskshards.train.evaluation.metrics import ImageScore, score
from maskshards.train.evaluation.results import as_json, write_results

CONFUSION = np.array([[6, 0, 0, 0], [0, 0, 0, 0], [0, 2, 2, 0], [0, 0, 0, 0]])
NAMES = ["wall", 'door, "front"', "<sea>", "tür"]


@pytest.fixture
def result():
    return score(CONFUSION, NAMES, num_images=7)


def test_json_holds_every_number_and_null_where_undefined(result, tmp_path):
    path, _ = write_results(result, tmp_path / "new")
    document = json.loads(path.read_text(encoding="utf-8"))
    assert document["num_images"] == 7
    assert document["mIoU"] == pytest.approx((100 + 0 + 50) / 3)
    assert document["aAcc"] == pytest.approx(80)
    assert document["absent_classes"] == ["tür"]
    assert [c["name"] for c in document["classes"]] == NAMES
    assert document["classes"][3]["iou"] is None
    assert document["classes"][2]["labelled_pixels"] == 4
    assert document["classes"][1]["predicted_pixels"] == 2


def test_csv_reads_back_with_names_that_need_quotes(result, tmp_path):
    _, path = write_results(result, tmp_path)
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["class"] == "mean"
    assert rows[0]["iou"] == "50.00"
    assert rows[1]["accuracy"] == "80.00"
    assert [row["class"] for row in rows[2:]] == NAMES
    assert [row["iou"] for row in rows[2:]] == ["100.00", "0.00", "50.00", ""]


def test_an_empty_evaluation_can_be_written(tmp_path):
    empty = score(np.zeros((2, 2), np.int64), "ab", num_images=0)
    path, _ = write_results(empty, tmp_path)
    assert json.loads(path.read_text())["mIoU"] is None
    assert math.isnan(empty.miou)


def test_extras_are_written_where_they_were_asked_for(result, tmp_path):
    images = (ImageScore("b", 70.0, 80.0), ImageScore("c", math.nan, math.nan), ImageScore("a", 12.345, 50.0))
    full = replace(
        result, boundary_miou=41.5, boundary_iou_per_class=(40.0, 43.0, math.nan, math.nan), images=images
    )
    path, _ = write_results(full, tmp_path)
    document = json.loads(path.read_text())
    assert document["boundary_mIoU"] == 41.5
    assert [c["boundary_iou"] for c in document["classes"]] == [40.0, 43.0, None, None]
    listed = (tmp_path / "results-semantic-segmentation-images.csv").read_text().splitlines()
    assert listed == ["key,mIoU,aAcc", "a,12.35,50.00", "b,70.00,80.00", "c,,"]
    assert "boundary" not in json.dumps(as_json(result))


def test_results_replace_older_ones_and_never_write_through_a_link(result, tmp_path):
    outside = tmp_path / "outside.json"
    outside.write_text("precious")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "results-semantic-segmentation.json").symlink_to(outside)
    path, _ = write_results(result, folder)
    assert outside.read_text() == "precious"
    assert json.loads(path.read_text()) == as_json(result)
    assert sorted(p.name for p in folder.iterdir()) == [
        f"results-semantic-segmentation.{end}" for end in ("csv", "json")
    ]
