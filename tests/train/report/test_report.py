import base64
import io
import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskshards.cli import COMMANDS
from maskshards.train.checkpoint.checkpoint import TrainState
from maskshards.train.evaluation.metrics import score
from maskshards.train.report.gallery import RIGHT, UNLABELLED, WRONG, Gallery, GalleryItem
from maskshards.train.report.report import RunFacts, best, duration, next_steps, phases, render, write_report

NAMES = ["sky", "<i>sea</i>", "sand", "never"]
CONFUSION = np.array([[90, 10, 0, 0], [5, 80, 15, 0], [0, 20, 30, 0], [0, 0, 0, 0]], np.int64)
RECORDS = [
    {"kind": "train", "step": 1, "loss": 9.0, "loss_mask": 1.0, "lr": 1e-4, "grad_norm": 3.0,
     "images_per_s": 2.0, "seconds": 10.0, "wait_share": 0.25},
    {"kind": "train", "step": 2, "loss": None, "loss_mask": 0.5, "lr": 1e-5, "grad_norm": 2.0,
     "images_per_s": 4.0, "seconds": 10.0, "wait_share": 0.25},
    {"kind": "checkpoint", "step": 2, "seconds": 1.0},
    {"kind": "eval", "step": 2, "mIoU": 60.0, "aAcc": 80.0, "num_images": 3, "seconds": 4.0},
]  # fmt: skip
PHASES = [
    {"kind": "phases", "step": step, "wait_ms": 1.0, "query_decoder_ms": span, "step_ms": 4 * span}
    for step, span in ((20, 10.0), (40, 30.0), (60, 20.0))
]
KEY = '"><script>key'
STATE = TrainState(
    step=2, position=8, fingerprint="f00d", global_batch=4, seed=1, backbone="dinov3_tiny16",
    backbone_digest="<digest>", class_names=NAMES, config={},
)  # fmt: skip
FACTS = RunFacts("run <7>", STATE, "optimizer:\n  lr: 0.1\n", "cpu", 2)


class Reader(HTMLParser):
    """Collects text and tags, as a browser would see them."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.tags, self.sources, self.ids = "", [], [], []

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]


def gallery() -> Gallery:
    found = Gallery(len(NAMES), 3)
    view = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    found._worst.append(GalleryItem(KEY, 12.5, (6, 8), (1, 0), view, view, view, view))
    return found


def test_everything_is_there_and_nothing_is_loaded(tmp_path: Path) -> None:
    path = write_report(tmp_path, FACTS, RECORDS, score(CONFUSION, NAMES, 3), gallery())
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
    html = path.read_text(encoding="utf-8")
    seen = Reader()
    seen.feed(html)
    assert {"svg", "polyline", "table", "img"} <= set(seen.tags)
    assert not {"script", "link", "i", "iframe"} & set(seen.tags)
    assert all(source.startswith(("data:image/", "#")) for source in seen.sources)
    assert {source[1:] for source in seen.sources if source[0] == "#"} == set(seen.ids)
    assert "url(" not in html
    for part in ("<i>sea</i>", "run <7>", '"><script>key', "f00d", "<digest>", "lr: 0.1", "never"):
        assert part in seen.text


def test_what_to_run_next_are_commands_of_ours() -> None:
    seen = Reader()
    seen.feed(render(replace(FACTS, folder="runs/a b"), RECORDS, score(CONFUSION, NAMES, 3), gallery()))
    for command in next_steps("runs/a b"):
        assert command in seen.text
        program, name, *words = shlex.split(command)
        assert program == "maskshards"
        assert name in COMMANDS
        assert any("runs/a b" in word for word in words)
    assert "next" in seen.ids


def test_an_error_map_is_told_without_its_colours() -> None:
    light = [0.2126 * red + 0.7152 * green + 0.0722 * blue for red, green, blue in (RIGHT, WRONG, UNLABELLED)]
    assert light[0] - light[1] > 60
    assert light[1] - light[2] > 60


def test_figures_are_the_results() -> None:
    html = render(FACTS, RECORDS, score(CONFUSION, NAMES, 3), gallery())
    seen = Reader()
    seen.feed(html)
    iou = 100 * 90 / (100 + 95 - 90)
    assert f"{iou:.2f}" in seen.text
    assert "sand" in seen.text
    assert "15.0 s" in seen.text  # 20 s of steps, a quarter of them waiting
    assert "5.0 s" in seen.text
    assert "40.0" in seen.text  # 20 of the 50 pixels of sand were taken for sea


@pytest.mark.parametrize("kind", ["train", "eval", "checkpoint", "phases"])
def test_a_line_without_figures_or_with_odd_ones_ends_no_run(kind: str) -> None:
    """metrics.jsonl may have been written by another version, or edited."""
    absurd = dict.fromkeys(("loss", "lr", "mIoU", "aAcc", "images_per_s", "wait_share", "step_ms"), 1e308)
    odd: list[dict[str, object]] = [
        {"kind": kind, "step": 3},
        {"kind": kind, "step": 3, "order": "0f", **dict.fromkeys(("seconds", "loss", "mIoU", "step_ms"))},
        {"kind": kind, "step": 1, "seconds": -1, **absurd},
    ]
    html = render(FACTS, RECORDS + PHASES + odd, score(CONFUSION, NAMES, 3), gallery())
    assert "sand" in html


def test_the_best_evaluation_is_told_where_there_are_several() -> None:
    evaluations = [
        {"kind": "eval", "step": step, "mIoU": miou} for step, miou in ((2, 60.0), (4, None), (6, 50.0))
    ]
    assert "the highest mIoU so far is 60.00, after step 2" in best(evaluations)
    assert best(evaluations[:1]) == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0.0 s"), (119.94, "119.9 s"), (3720.0, "62.0 min"), (9000.0, "2.5 h")]
)
def test_long_times_are_told_in_minutes_and_hours(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_phases_are_medians_over_the_timed_steps_and_shares_of_the_whole() -> None:
    assert phases(RECORDS) is None
    table = render(FACTS, [*RECORDS, *PHASES], score(CONFUSION, NAMES, 3), gallery())
    seen = Reader()
    seen.feed(table)
    assert "Medians of 3 timed steps." in seen.text
    assert "query decoder20.0 ms25 %" in seen.text
    assert "whole step80.0 ms" in seen.text
    assert "width:25.0%" in table


def test_pictures_survive_the_way_into_the_page() -> None:
    html = render(FACTS, RECORDS, score(CONFUSION, NAMES, 3), gallery())
    pngs = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", html)
    shown = Image.open(io.BytesIO(base64.b64decode(pngs[0])))
    expected = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(shown), expected)


def test_chromium_draws_it(tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on this machine")
    page = write_report(tmp_path, FACTS, RECORDS, score(CONFUSION, NAMES, 3), gallery())
    picture = tmp_path / "page.png"
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=1100,1600",
        f"--screenshot={picture}",
    ]
    subprocess.run([browser, *options, page.as_uri()], check=True, capture_output=True, timeout=900)
    pixels = np.asarray(Image.open(picture).convert("RGB")).reshape(-1, 3)
    blue = (0x2F, 0x6F, 0xD0)  # of curves and bars
    assert (pixels == blue).all(axis=1).sum() > 500
    assert len(np.unique(pixels, axis=0)) > 100
