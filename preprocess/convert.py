"""One source sample -> its records, with every check of the input; the only maker of runs from labels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image

from maskshards.preprocess.errors import BuildError, RejectedInput, SourceUnavailable
from maskshards.preprocess.inputs.image_policy import Encoded, ImagePolicy
from maskshards.preprocess.inputs.images import encode_images
from maskshards.preprocess.inputs.label_file import decode_label_file
from maskshards.preprocess.inputs.labels import LabelRule
from maskshards.preprocess.inputs.pillow import size_limit
from maskshards.preprocess.inputs.source_files import may_pass
from maskshards.preprocess.inputs.tiles import tile_key
from maskshards.preprocess.sources.source import RawSample, Source, SourceItem
from maskshards.shards.errors import ShardError
from maskshards.shards.format.record import Record


@contextmanager
def judged(place: str) -> Iterator[None]:
    """Whatever is raised in the block, where the sample at `place` is read and decoded, as RejectedInput.

    As BuildError what says nothing of the sample (its source is away, memory is short).
    """
    try:
        yield
    except (RejectedInput, ShardError, BuildError):
        raise
    except MemoryError as error:
        raise BuildError(
            f"{place}: memory does not suffice for it ({str(error) or 'MemoryError'}); finished shards"
            " are kept: give fewer --workers or more memory, and the same command goes on from there"
        ) from error
    except Exception as error:
        if isinstance(error, OSError) and may_pass(error):
            raise SourceUnavailable(
                f"{place} cannot be read now: {error}; the same command goes on from there"
            ) from error
        raise RejectedInput(
            f"it cannot be read ({type(error).__name__}: {error}); get a good copy of the file"
        ) from error


def read_records(source: Source, item: SourceItem, stamp: str, policy: ImagePolicy) -> list[Record]:
    """Read one sample, whose files had that stamp before, and turn it into records: one, or one a tile.

    RejectedInput with the reason where that cannot be done, or where the stamp is another afterwards.
    """
    raw = source.read(item)
    records = to_records(item, raw, source.label_rule, policy)
    if source.stamp(item) != stamp:
        raise RejectedInput("its files changed during the build; let them rest and build again")
    return records


def to_records(item: SourceItem, raw: RawSample, rule: LabelRule, policy: ImagePolicy) -> list[Record]:
    """The records of a sample whose bytes are at hand; pure.

    Image bytes stay as they are unless `policy` says otherwise.
    """
    facts = {
        "image": item.image_path,
        "label": item.label_path,
        "image_sha256": hashlib.sha256(raw.image).hexdigest(),
        "label_sha256": hashlib.sha256(raw.label).hexdigest(),
        **raw.facts,
    }
    try:
        found = pieces(item, raw, rule, policy)
        return [_record(key, image, values, rule, dict(facts)) for key, image, values in found]
    except ShardError as error:
        raise RejectedInput(str(error)) from error


def pieces(
    item: SourceItem, raw: RawSample, rule: LabelRule, policy: ImagePolicy
) -> Iterator[tuple[str, Encoded, np.ndarray]]:
    """Key, image and (H, W) label values of every record that a sample becomes, in order."""
    images = encode_images(raw.image, policy)
    if not raw.label:
        raise RejectedInput("the label map is empty (0 bytes)")
    with size_limit(policy.most_pixels):
        values = decode_label_file(raw.label, lossy=rule.is_threshold())
    for image in images:
        key = item.key if image.corner is None else tile_key(item.key, image.corner)
        yield key, image, fit_labels(values, image)


def fit_labels(values: np.ndarray, image: Encoded) -> np.ndarray:
    """(H, W) label values of a stored image from those of its source.

    They are cut like a tile, or taken by nearest where it was scaled. RejectedInput where image and label map
    differ in size.
    """
    height, width = image.source_height, image.source_width
    if values.shape != (height, width):
        turned = values.shape == (width, height) and image.note
        hint = "; it matches the image before its EXIF rotation" if turned else ""
        raise RejectedInput(
            f"label map is {values.shape[1]}x{values.shape[0]}, image is {width}x{height} (width x "
            f"height){hint};"
            " both must show the same pixels"
        )
    if image.corner is not None:
        top, left = image.corner
        return np.ascontiguousarray(values[top : top + image.height, left : left + image.width])
    if (image.height, image.width) != (height, width):
        scaled = Image.fromarray(values).resize((image.width, image.height), Image.Resampling.NEAREST)
        values = np.asarray(scaled).astype(values.dtype)
    return values


def _record(key: str, image: Encoded, values: np.ndarray, rule: LabelRule, facts: dict[str, Any]) -> Record:
    if image.note:
        facts["note"] = image.note
    if image.corner is not None:
        top, left = image.corner
        size = {"source_height": image.source_height, "source_width": image.source_width}
        facts["tile"] = {"top": top, "left": left, **size}
    return Record(key, image.data, image.image_format, image.height, image.width, rule.encode(values), facts)
