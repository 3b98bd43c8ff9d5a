"""Two runs on one page: what differs, what may be compared, and that names stay text."""

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from maskshards.train.checkpoint.train_state import TrainState
from maskshards.train.comparison.comparison import (
    classes,
    findings,
    means,
    render,
    settings,
    write_comparison,
)
from maskshards.train.comparison.past_run import PastRun

EVIL = "<script>alert(1)</script>"
STATE = TrainState(
    step=4, position=8, fingerprint="f00d", global_batch=2, seed=1, backbone="dinov3_tiny16",
    backbone_digest="d", class_names=[], config={}, val_fingerprint="beef",
)  # fmt: skip


def records(step=4, speed=10.0):
    return [
        {"kind": "train", "step": step, "loss": 3.0, "lr": 0.1, "grad_norm": 1.0, "images_per_s": speed},
        {"kind": "eval", "step": step, "mIoU": 40.0},
    ]


A = PastRun(
    Path("runs/<b>a"),
    {"output_dir": "runs/a", "bs": 2, "optimizer.lr": 0.1, "scheduler.total_iter": 4, "m.weights": EVIL},
    records(),
    {"mIoU": 40.0, "aAcc": 70.0},
    {"sky": 50.0, "sea": 30.0, EVIL: None},
    3,
    STATE,
)
B = PastRun(
    Path("runs/b"),
    {"output_dir": "runs/b", "bs": 2, "optimizer.lr": 0.2, "scheduler.total_iter": 4, "m.weights": None},
    records(speed=15.0),
    {"mIoU": 42.5, "aAcc": 70.0},
    {"sky": 48.0, "sea": 37.0, EVIL: 1.0},
    3,
    STATE,
)


class Reader(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.text, self.tags = "", []
        self.feed(html)

    def handle_data(self, data):
        self.text += data

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)


def test_settings_are_those_that_differ():
    rows = [(row.name, row.values) for row in settings([A, B])]
    assert rows == [("optimizer.lr", ("0.1", "0.2")), ("m.weights", (EVIL, "null"))]
    without = replace(B, config={"bs": 2})
    assert ("optimizer.lr", ("0.1", "not known")) in [(r.name, r.values) for r in settings([A, without])]


def test_scores_and_classes_with_their_differences():
    assert [(row.name, row.values, row.differences) for row in means([A, B])] == [
        ("mIoU", ("40.00", "42.50"), ("+2.50",)),
        ("aAcc", ("70.00", "70.00"), ("+0.00",)),
    ]
    assert [(row.name, row.values, row.differences) for row in classes([A, B])] == [
        ("sea", ("30.00", "37.00"), ("+7.00",)),
        ("sky", ("50.00", "48.00"), ("-2.00",)),
        (EVIL, ("-", "1.00"), ("-",)),
    ]


def test_what_came_of_it_in_words():
    assert list(findings([A, B])) == [
        "B scores 42.50 mIoU, +2.50 against A.",
        "B gains most in sea (+7.00).",
        "B loses most in sky (-2.00).",
        "B trains 15 images a second, 1.50 times A.",
        "2 settings differ.",
    ]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"state": replace(STATE, val_fingerprint="other")}, "different validation splits"),
        ({"num_images": 2}, r"different numbers of images (2, 3)"),
        ({"classes": {"sky": 1.0}}, "different classes"),
        ({"records": records(step=2)}, "B has not ended: step 2 of 4."),
    ],
)
def test_what_forbids_to_compare_comes_first(change, told):
    assert told in next(iter(findings([A, replace(B, **change)])))


def test_states_of_older_versions_forbid_nothing():
    old = replace(B, state=replace(STATE, val_fingerprint=None))
    assert not any("cannot be compared" in one for one in findings([A, old, replace(B, state=None)]))


def test_the_page_escapes_and_draws_each_run(tmp_path):
    write_comparison([A, B, replace(B, records=[])], tmp_path / "deep" / "page.html")
    html = (tmp_path / "deep" / "page.html").read_text(encoding="utf-8")
    page = Reader(html)
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert "b" in page.tags  # differences; that of the folder's name is text:
    assert "runs/<b>a" in page.text
    assert EVIL in page.text
    assert page.tags.count("svg") == 5
    assert page.tags.count("polyline") == 5 * 2  # the third run was only evaluated
    assert "C \N{MINUS SIGN} A" in page.text
    assert "an evaluation" in page.text


def test_nothing_to_tell_is_a_page_too():
    empty = PastRun(Path("a"), {})
    page = Reader(render([empty, empty]))
    assert "0 settings differ." in page.text
    assert "svg" not in page.tags
