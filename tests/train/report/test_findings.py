"""Each finding on figures that call for it, and silence on figures that do not."""

import numpy as np
import pytest

from maskshards.train.evaluation.metrics import score
from maskshards.train.report.findings import about_schedule, about_scores, about_time, findings, some

NAMES = ["sky", "sea", "sand"]
EVEN = score(np.array([[80, 10, 10], [10, 80, 10], [10, 10, 80]], np.int64), NAMES, 3)


def evaluation(step: int, miou: float) -> dict[str, object]:
    return {"kind": "eval", "step": step, "mIoU": miou}


def test_nothing_odd_is_not_talked_about() -> None:
    assert findings({}, [], EVEN) == []


def test_classes_that_hide_are_missing_or_never_found() -> None:
    matrix = np.array([[970, 0, 0], [30, 0, 0], [0, 0, 0]], np.int64)
    told = findings({}, [], score(matrix, NAMES, 3))
    assert told[0].startswith("One class, sky, takes 97 % of the labelled pixels")
    assert told[1] == "1 of 3 classes has no pixel in the validation split: sand."
    assert told[2].startswith("1 class was never predicted: sea.")


def test_what_training_never_saw_is_told_once() -> None:
    matrix = np.array([[50, 0, 0], [30, 0, 0], [20, 0, 0]], np.int64)
    told = findings({}, [], score(matrix, NAMES, 3), ["sea"])
    assert told[0].startswith("1 class was never seen in training")
    assert told[0].endswith(" shows sea.")
    assert told[1].startswith("1 class was never predicted: sand.")


@pytest.mark.parametrize(("warmup", "steps", "told"), [(1500, 1000, 1), (1000, 1000, 1), (999, 1000, 0)])
def test_a_warm_up_longer_than_the_run(warmup: int, steps: int, told: int) -> None:
    schedule = {"total_iter": steps, "constructor_kwargs": {"warmup_iters": warmup}}
    assert len(list(about_schedule({"scheduler": schedule}))) == told


def test_whether_longer_training_is_likely_to_help() -> None:
    rising = [evaluation(0, 1.0), evaluation(10, 20.0), evaluation(20, 30.0)]
    (told,) = about_scores(rising, "mIoU")
    assert "The last evaluation is the best (30.00 after step 20)" in told
    (told,) = about_scores([*rising, evaluation(30, 25.0)], "mIoU")
    assert "after step 20 (30.00), the last one gives 25.00" in told
    assert list(about_scores(rising[:2], "mIoU")) == []


@pytest.mark.parametrize(("share", "told"), [(0.25, 1), (0.01, 0)])
def test_waiting_for_data(share: float, told: int) -> None:
    records = [{"kind": "train", "step": 1, "seconds": 10.0, "wait_share": share}]
    assert len(list(about_time(records))) == told


def test_long_lists_are_cut() -> None:
    assert some(["a", "b"]) == "a, b"
    assert some([str(k) for k in range(9)]) == "0, 1, 2, 3, 4, 5 and 3 more"
