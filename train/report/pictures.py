"""A gallery as HTML: each image with its labels, the prediction over it and its errors, and what the colours
mean.

Pictures are inlined. Keys and class names come from data, so they are escaped wherever they stand.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from PIL import Image

from maskshards.train.report.gallery import RIGHT, UNLABELLED, WRONG, GalleryItem
from maskshards.train.report.palette import class_colours

ERROR_COLOURS = {"right": RIGHT, "wrong": WRONG, "unlabelled": UNLABELLED}


def pictures(items: Sequence[GalleryItem], class_names: Sequence[str]) -> str:
    """One row of four captioned pictures an item, above a legend of the classes in it; empty for no item."""
    if not items:
        return ""
    colours = class_colours(len(class_names))
    rows = []
    for item in items:
        views = {
            "photograph": photo_uri(item.image),
            "labels": map_uri(item.label),
            "prediction": photo_uri(item.prediction),
            "errors": map_uri(item.errors),
        }
        height_px, width_px = item.size_px
        head = f"<b>{escape(item.key)}</b>: mIoU {shown(item.miou)}, {width_px} &times; {height_px} px"
        figures = "".join(figure(uri, view, item.key) for view, uri in views.items())
        present = {class_names[k]: colours[k].tolist() for k in item.classes}
        rows.append(f'<div>{head}</div><div class="row">{figures}</div>{legend(present)}')
    return f"<p>Errors: {swatches(ERROR_COLOURS)} Black labels are unlabelled.</p>{''.join(rows)}"


def figure(uri: str, view: str, key: str) -> str:
    """A picture with its caption; its alternative text names the view and the key."""
    alt = escape(f"{view} of {key}", quote=True)
    return f'<figure><img src="{uri}" alt="{alt}"><figcaption>{view}</figcaption></figure>'


def legend(colours: Mapping[str, Sequence[int]]) -> str:
    """The class colours of one image, as a line below it."""
    return f'<p class="key">{swatches(colours)}</p>'


def swatches(colours: Mapping[str, Sequence[int]]) -> str:
    """Names with a square of their RGB colour before each."""
    return " ".join(
        f'<span class="name"><span class="swatch" style="background:#{bytes(colour).hex()}"></span>'
        f"{escape(name)}</span>"
        for name, colour in colours.items()
    )


def photo_uri(pixels: np.ndarray) -> str:
    """(h, w, 3) uint8 as an inline JPEG."""
    return data_uri(pixels, "jpeg", quality=85)


def map_uri(pixels: np.ndarray) -> str:
    """(h, w, 3) uint8 as an inline PNG: maps have edges."""
    return data_uri(pixels, "png")


def data_uri(pixels: np.ndarray, kind: str, **options: int) -> str:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, kind, **options)
    return f"data:image/{kind};base64," + base64.b64encode(data.getvalue()).decode()


def shown(score: float) -> str:
    """A score in percent with two decimals, a dash where it is undefined."""
    return "-" if math.isnan(score) else f"{score:.2f}"
