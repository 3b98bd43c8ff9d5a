"""An evaluation as files and as a table.

`results-semantic-segmentation.csv` has the reference's name and one row per class after a row of means; the
JSON beside it holds the same with counts, `null` where a score is undefined (a JSON NaN is not JSON). Both
are written whole or not at all. Scores are percent, rounded only for people (two decimals).
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from pathlib import Path
from typing import Any

from maskshards.shards.storage.atomic_write import replacing
from maskshards.train.checkpoint.run_files import RESULTS as STEM
from maskshards.train.evaluation.metrics import METRICS, EvalResult
from maskshards.train.evaluation.spreadsheet import cell_text

COLUMNS = ("iou", "accuracy", "dice", "fscore", "precision", "recall")  # EvalResult.<column>_per_class


def write_results(result: EvalResult, folder: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Write STEM.json and STEM.csv into `folder` (made if missing) and return their paths.

    Where there are scores of single images, STEM-images.csv lists them, worst first.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / f"{STEM}.json", folder / f"{STEM}.csv"
    document = json.dumps(as_json(result), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    texts = {paths[0]: document, paths[1]: as_csv(result)}
    if result.images:
        texts[folder / f"{STEM}-images.csv"] = images_csv(result)
    for path, text in texts.items():
        with replacing(path) as hidden:
            hidden.write_text(text, encoding="utf-8", newline="")
    return paths


def as_json(result: EvalResult) -> dict[str, Any]:
    """The result as plain JSON values; undefined scores are None."""
    outlined = result.boundary_miou is not None
    classes = [
        {
            "id": k,
            "name": name,
            **{column: _or_none(getattr(result, f"{column}_per_class")[k]) for column in COLUMNS},
            **({"boundary_iou": _or_none(result.boundary_iou_per_class[k])} if outlined else {}),
            "labelled_pixels": result.labelled_pixels[k],
            "predicted_pixels": result.predicted_pixels[k],
        }
        for k, name in enumerate(result.class_names)
    ]
    return {
        "unit": "percent",
        "num_images": result.num_images,
        **{name: _or_none(result.metric(name)) for name in METRICS},
        **({"boundary_mIoU": _or_none(result.boundary_miou)} if result.boundary_miou is not None else {}),
        "absent_classes": list(result.absent_classes),
        "classes": classes,
    }


def as_csv(result: EvalResult) -> str:
    """One row per class after the row "mean"; empty cells where a score is undefined."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["id", "class", *COLUMNS, "labelled_pixels", "predicted_pixels"])
    means = [result.metric(name) for name in ("mIoU", "acc", "dice", "fscore", "precision", "recall")]
    totals = [sum(result.labelled_pixels), sum(result.predicted_pixels)]
    rows.writerow(["", "mean", *map(_cell, means), *totals])
    rows.writerow(["", "pixel accuracy", "", _cell(result.pixel_accuracy), "", "", "", "", *totals])
    for k, name in enumerate(result.class_names):
        scores = [_cell(getattr(result, f"{column}_per_class")[k]) for column in COLUMNS]
        rows.writerow([k, cell_text(name), *scores, result.labelled_pixels[k], result.predicted_pixels[k]])
    return text.getvalue()


def images_csv(result: EvalResult) -> str:
    """One row per image, the lowest mIoU first; images without a score last."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["key", "mIoU", "aAcc"])
    for one in sorted(result.images, key=lambda one: (math.isnan(one.miou), one.miou, one.key)):
        rows.writerow([cell_text(one.key), _cell(one.miou), _cell(one.pixel_accuracy)])
    return text.getvalue()


def _or_none(score: float) -> float | None:
    return None if math.isnan(score) else score


def _cell(score: float) -> str:
    return "" if math.isnan(score) else f"{score:.2f}"
