"""One source sample -> one record, with every check of the input. Nothing else turns label maps into runs."""

from __future__ import annotations

import hashlib

import numpy as np
from PIL import Image

from preprocess.errors import RejectedInput
from preprocess.images import Encoded, ImagePolicy, encode_image
from preprocess.labels import LabelRule, decode_label_file
from preprocess.sources.source import RawSample, Source, SourceItem
from shards.errors import ShardError
from shards.record import Record
from shards.rle import encode_label_map


def read_record(source: Source, item: SourceItem, policy: ImagePolicy) -> Record:
    """Read one sample and turn it into a record. RejectedInput with the reason where that cannot be done."""
    before = source.stamp(item)
    raw = source.read(item)
    record = to_record(item, raw, source.label_rule, policy)
    if source.stamp(item) != before:
        raise RejectedInput("its files changed while they were read; let them rest and build again")
    return record


def to_record(item: SourceItem, raw: RawSample, rule: LabelRule, policy: ImagePolicy) -> Record:
    """The record of a sample whose bytes are at hand; pure. Image bytes stay as they are unless `policy`
    says otherwise.
    """
    image = encode_image(raw.image, policy)
    class_map = class_map_of(raw.label, rule, image)
    facts = {
        "image": item.image_path,
        "label": item.label_path,
        "image_sha256": hashlib.sha256(raw.image).hexdigest(),
        "label_sha256": hashlib.sha256(raw.label).hexdigest(),
        **raw.facts,
    }
    if image.note:
        facts["note"] = image.note
    try:
        runs = encode_label_map(class_map)
        return Record(item.key, image.data, image.image_format, image.height, image.width, runs, facts)
    except ShardError as error:
        raise RejectedInput(str(error)) from error


def class_map_of(label: bytes, rule: LabelRule, image: Encoded) -> np.ndarray:
    """(H, W) uint16 class ids in the size of the stored image, void as IGNORE; scaled by nearest where the
    image was.
    """
    if not label:
        raise RejectedInput("the label map is empty (0 bytes)")
    values = decode_label_file(label)
    size = image.source_height, image.source_width
    if values.shape != size:
        turned = (
            "; it matches the image before its EXIF rotation"
            if values.shape == size[::-1] and image.note
            else ""
        )
        raise RejectedInput(
            f"label map is {values.shape[1]}x{values.shape[0]}, image is {size[1]}x{size[0]} (width x "
            f"height){turned};"
            " both must show the same pixels"
        )
    if (image.height, image.width) != size:
        scaled = Image.fromarray(values).resize((image.width, image.height), Image.Resampling.NEAREST)
        values = np.asarray(scaled).astype(values.dtype)
    return rule.apply(values)
