"""One source sample -> one record, with every check of the input. Nothing else turns label maps into runs."""

from __future__ import annotations

import hashlib

import numpy as np
from PIL import Image

from maskshards.preprocess.errors import RejectedInput
from maskshards.preprocess.inputs.images import Encoded, ImagePolicy, encode_image
from maskshards.preprocess.inputs.labels import LabelRule, decode_label_file
from maskshards.preprocess.sources.source import RawSample, Source, SourceItem
from maskshards.shards.errors import ShardError
from maskshards.shards.format.record import Record


def read_record(source: Source, item: SourceItem, stamp: str, policy: ImagePolicy) -> Record:
    """Read one sample, whose files had that stamp before, and turn it into a record.

    RejectedInput with the reason where that cannot be done, or where the stamp is another afterwards.
    """
    raw = source.read(item)
    record = to_record(item, raw, source.label_rule, policy)
    if source.stamp(item) != stamp:
        raise RejectedInput("its files changed during the build; let them rest and build again")
    return record


def to_record(item: SourceItem, raw: RawSample, rule: LabelRule, policy: ImagePolicy) -> Record:
    """The record of a sample whose bytes are at hand; pure. Image bytes stay as they are unless `policy`
    says otherwise.
    """
    image = encode_image(raw.image, policy)
    values = label_values(raw.label, image)
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
        runs = rule.encode(values)
        return Record(item.key, image.data, image.image_format, image.height, image.width, runs, facts)
    except ShardError as error:
        raise RejectedInput(str(error)) from error


def label_values(label: bytes, image: Encoded) -> np.ndarray:
    """(H, W) values of a label file in the size of the stored image, by nearest where that was scaled."""
    if not label:
        raise RejectedInput("the label map is empty (0 bytes)")
    values = decode_label_file(label)
    height, width = image.source_height, image.source_width
    if values.shape != (height, width):
        turned = values.shape == (width, height) and image.note
        hint = "; it matches the image before its EXIF rotation" if turned else ""
        raise RejectedInput(
            f"label map is {values.shape[1]}x{values.shape[0]}, image is {width}x{height} (width x "
            f"height){hint};"
            " both must show the same pixels"
        )
    if (image.height, image.width) != (height, width):
        scaled = Image.fromarray(values).resize((image.width, image.height), Image.Resampling.NEAREST)
        values = np.asarray(scaled).astype(values.dtype)
    return values
