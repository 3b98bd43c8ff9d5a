"""From COCO's segments to one class a pixel: panoptic PNGs, polygons and run lengths.

Polygons are filled by pycocotools (extra `coco`), whose rule is the definition. Objects may overlap: larger
ones are painted first, so that what lies before or on them stays visible.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskshards.preprocess.errors import RejectedInput, SourceError
from maskshards.preprocess.inputs import png
from maskshards.preprocess.inputs.pillow import check_size, opened
from maskshards.shards.errors import RunsError
from maskshards.shards.format.coco import from_coco
from maskshards.shards.format.rle import decode_label_map

UNLABELLED = 0  # the id of pixels without a segment in a panoptic PNG
FAR = 8  # sides of the image; a polygon that reaches further is no mask of it
Segment = Mapping[str, Any]


def check_polygons() -> None:
    """SourceError where the library that fills polygons is not installed."""
    try:
        import pycocotools.mask  # noqa: F401
    except ImportError as error:
        raise SourceError("COCO's polygons need the extra: pip install 'maskshards[coco]'") from error


def checked(segments: object, has_id: bool = False) -> Sequence[Segment]:
    """Segments as annotations hold them: objects, each of a category. RejectedInput for anything else."""
    if not isinstance(segments, list):
        raise RejectedInput(f"its segments are {segments!r:.40}, expected a list")
    for segment in segments:
        if not isinstance(segment, dict) or type(segment.get("category_id")) is not int:
            raise RejectedInput(f"its segment {segment!r:.80} has no category_id, a whole number")
        if has_id and (type(segment.get("id")) is not int or segment["id"] >> 24):
            raise RejectedInput(f"its segment {segment!r:.80} has no id from 0 to {(1 << 24) - 1}")
    return segments


def panoptic_values(
    data: bytes, segments: Sequence[Segment], classes: Mapping[int, int], void: int, other: int
) -> NDArray[np.uint16]:
    """(H, W) class ids from a panoptic PNG and its `segments_info`.

    `classes` maps category ids; segments of other categories get `other`, unlabelled pixels `void`.
    RejectedInput for ids without a segment.
    """
    header = png.read_header(data)
    if header.colour not in (png.RGB, png.RGB_ALPHA) or header.bit_depth != 8:
        raise RejectedInput(f"panoptic map is a {header}; expected 8-bit RGB")
    with opened(data, ("PNG",)) as image:
        colours = np.asarray(image.convert("RGB")).astype(np.uint32)
    ids = colours[..., 0] | colours[..., 1] << 8 | colours[..., 2] << 16
    table = {UNLABELLED: void}
    table |= {int(segment["id"]): classes.get(segment["category_id"], other) for segment in segments}
    known = np.array(sorted(table), np.uint32)
    places = np.searchsorted(known, ids).clip(max=len(known) - 1)
    strange = known[places] != ids
    if strange.any():
        pixels = int(strange.sum())
        raise RejectedInput(
            f"panoptic map: its segments_info lacks segment {ids[strange][0]} ({pixels} pixels of such)"
        )
    return np.asarray(np.array([table[int(key)] for key in known], np.uint16)[places])


def painted_values(
    segments: Sequence[Segment], classes: Mapping[int, int], height: int, width: int, void: int
) -> NDArray[np.uint16]:
    """(H, W) class ids of segments with polygons or run lengths, painted in the order given.

    The rest is `void`. RejectedInput names a segment that cannot be drawn.
    """
    check_size(height, width)
    values = np.full((height, width), void, np.uint16)
    for segment in segments:
        label = classes.get(segment["category_id"])
        if label is not None:
            values[_mask(segment, height, width)] = label
    return values


def by_size(segments: Sequence[Segment]) -> list[Segment]:
    """The larger before the smaller; of equal size in the order given."""
    return sorted(segments, key=lambda segment: -_area(segment))


def _area(segment: Segment) -> float:
    area, box = segment.get("area"), segment.get("bbox")
    if isinstance(area, (int, float)) and math.isfinite(area):
        return float(area)
    return float(box[2] * box[3]) if isinstance(box, list) and len(box) == 4 else 0.0


def _mask(segment: Segment, height: int, width: int) -> NDArray[np.bool_]:
    """(H, W) of one segment."""
    shape, name = segment.get("segmentation"), f"annotation {segment.get('id')}"
    if shape == [] and _area(segment) > 0:
        raise RejectedInput(f"{name} has a box and no mask, so its pixels would be those of no object")
    if isinstance(shape, list):
        shape = _filled(shape, height, width, name)
    if not isinstance(shape, dict) or "counts" not in shape:
        raise RejectedInput(f"{name} has neither polygons nor run lengths")
    try:
        runs = from_coco([{**shape, "size": [*shape.get("size", ())]}], [0], height, width)
    except (RunsError, TypeError) as error:
        raise RejectedInput(f"{name}: {error}") from error
    return np.asarray(decode_label_map(runs, height, width) == 0)


def _filled(polygons: list[Any], height: int, width: int, name: str) -> dict[str, Any]:
    """The run lengths of polygons, all of one object."""
    from pycocotools import mask as coco_mask

    far = FAR * max(height, width)
    for polygon in polygons:
        numbers = isinstance(polygon, list) and all(
            isinstance(x, (int, float)) and abs(x) <= far for x in polygon
        )
        if not numbers or len(polygon) < 6 or len(polygon) % 2:
            raise RejectedInput(
                f"{name}: a polygon is not three or more pairs of numbers within {FAR} sides of the image"
            )
    if not polygons:
        return {"size": [height, width], "counts": [height * width]}
    merged: dict[str, Any] = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    return merged
