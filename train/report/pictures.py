"""A gallery as data: each image, its labels, the prediction over it and its errors, as inline pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from maskshards.train.report.gallery import RIGHT, UNLABELLED, WRONG, GalleryItem
from maskshards.train.report.pages import shown
from maskshards.train.report.palette import class_colours


@dataclass(frozen=True, slots=True)
class Pictured:
    """One image of the gallery, ready for the page."""

    key: str
    miou: str
    height_px: int
    width_px: int
    views: dict[str, str]  # caption -> data URI
    colours: dict[str, str]  # class in the image -> colour


def pictured(items: Sequence[GalleryItem], class_names: Sequence[str]) -> list[Pictured]:
    """Four captioned pictures an item and the colours of the classes in it."""
    colours = class_colours(len(class_names))
    return [
        Pictured(
            item.key,
            shown(item.miou),
            *item.size_px,
            views={
                "photograph": photo_uri(item.image),
                "labels": map_uri(item.label),
                "prediction": photo_uri(item.prediction),
                "errors": map_uri(item.errors),
            },
            colours={class_names[k]: hex_of(colours[k]) for k in item.classes},
        )
        for item in items
    ]


def error_colours() -> dict[str, str]:
    """What the colours of an error map mean."""
    return {"right": hex_of(RIGHT), "wrong": hex_of(WRONG), "unlabelled": hex_of(UNLABELLED)}


def hex_of(colour: Sequence[int] | np.ndarray) -> str:
    """An RGB colour as CSS writes it."""
    return f"#{bytes(int(level) for level in colour).hex()}"


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
