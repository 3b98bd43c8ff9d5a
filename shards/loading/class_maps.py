"""Class maps as other people's code takes them, made of runs and turned back into runs.

One byte a pixel with 255 for "no class" fits nearly all data sets and every image library; a data set of more
than 255 classes gets int32 with 65535.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskshards.shards.errors import RunsError
from maskshards.shards.format.rle import IGNORE, LabelledRuns, decode_label_map, encode_label_map

BYTE_IGNORE = 255


def ignore_index_of(num_classes: int) -> int:
    """The value of a pixel in no class: 255, or 65535 where 255 is a class."""
    return BYTE_IGNORE if num_classes <= BYTE_IGNORE else IGNORE


def class_map_of(runs: LabelledRuns, height: int, width: int, num_classes: int) -> NDArray[Any]:
    """(H, W) class ids: uint8 with 255 for no class, or int32 with 65535 where 255 is a class.

    RunsError for a class id that the data set does not have.
    """
    if len(runs.labels) and runs.labels[-1] >= num_classes:
        raise RunsError(f"class id {runs.labels[-1]} of a data set with {num_classes} classes")
    wide = decode_label_map(runs, height, width)
    return wide.astype(np.uint8 if num_classes <= BYTE_IGNORE else np.int32)  # 65535 as a byte is 255


def check_class_map(class_map: NDArray[Any], num_classes: int) -> None:
    """ValueError for values that are neither a class nor `ignore_index_of(num_classes)`."""
    ignore_index = ignore_index_of(num_classes)
    wrong = (class_map < 0) | (class_map >= num_classes)
    wrong &= class_map != ignore_index
    if wrong.any():
        raise ValueError(
            f"its class map holds {int(class_map[wrong][0])}; expected 0 to {num_classes - 1}, or "
            f"{ignore_index} for no class"
        )


def runs_of(class_map: NDArray[Any], num_classes: int) -> LabelledRuns:
    """The inverse of `class_map_of`, for a map of any integer type; ValueError for other values in it."""
    check_class_map(class_map, num_classes)
    ignored = class_map == ignore_index_of(num_classes)
    return encode_label_map(np.where(ignored, np.uint16(IGNORE), class_map.astype(np.uint16)))
