import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from maskshards.preprocess.convert import read_records, to_records
from maskshards.preprocess.errors import RejectedInput
from maskshards.preprocess.inputs.image_policy import ImagePolicy
from maskshards.preprocess.inputs.labels import LabelRule
from maskshards.preprocess.sources.folder import FolderSource
from maskshards.preprocess.sources.source import RawSample, SourceItem
from maskshards.shards.format.rle import IGNORE, decode_label_map

ITEM = SourceItem("a", "images/t/a.jpg", "annotations/t/a.png", "t")
RULE = LabelRule(5, reduce_zero_label=True)
KEEP = ImagePolicy()
RNG = np.random.default_rng(1)


def encode(array, kind="PNG", **options):
    out = io.BytesIO()
    Image.fromarray(array).save(out, kind, **options)
    return out.getvalue()


def to_record(*arguments):
    (record,) = to_records(*arguments)
    return record


IMAGE = encode(RNG.integers(0, 256, (20, 31, 3), dtype=np.uint8), "JPEG")
VALUES = RNG.integers(0, 6, (20, 31), dtype=np.uint8)


def test_a_record_is_the_image_as_it_is_and_the_labels_by_the_rule():
    label = encode(VALUES)
    record = to_record(ITEM, RawSample(IMAGE, label, {"scene": "street"}), RULE, KEEP)
    assert (record.key, record.image, record.image_format) == ("a", IMAGE, "jpg")
    found = decode_label_map(record.runs, record.height, record.width)
    assert (found == np.where(VALUES == 0, IGNORE, VALUES.astype(int) - 1)).all()
    assert record.source == {
        "image": ITEM.image_path,
        "label": ITEM.label_path,
        "image_sha256": hashlib.sha256(IMAGE).hexdigest(),
        "label_sha256": hashlib.sha256(label).hexdigest(),
        "scene": "street",
    }


def test_scaled_images_get_labels_of_the_same_size_and_a_note():
    record = to_record(ITEM, RawSample(IMAGE, encode(VALUES)), RULE, ImagePolicy(max_short_side=10))
    assert (record.height, record.width) == (10, 16)
    expected = np.asarray(Image.fromarray(VALUES).resize((16, 10), Image.Resampling.NEAREST)).astype(int)
    found = decode_label_map(record.runs, 10, 16)
    assert (found == np.where(expected == 0, IGNORE, expected - 1)).all()
    assert "Lanczos to 16x10" in record.source["note"]
    wide = to_record(
        ITEM, RawSample(IMAGE, encode(VALUES.astype(np.uint16))), RULE, ImagePolicy(max_short_side=10)
    )
    assert (decode_label_map(wide.runs, 10, 16) == found).all()


def test_labels_of_a_rotated_image_have_its_upright_size():
    tags = Image.Exif()
    tags[0x0112] = 6
    rotated = encode(RNG.integers(0, 256, (31, 20, 3), dtype=np.uint8), "JPEG", exif=tags)
    record = to_record(ITEM, RawSample(rotated, encode(VALUES)), RULE, ImagePolicy(convert=True))
    assert (record.height, record.width) == (20, 31)
    with pytest.raises(RejectedInput, match=r"label map is 20x31, image is 31x20.*before its EXIF rotation"):
        to_record(ITEM, RawSample(rotated, encode(VALUES.T.copy())), RULE, ImagePolicy(convert=True))


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (encode(VALUES[:-1]), "label map is 31x19, image is 31x20"),
        (encode(VALUES + 3), "label values out of range: 6, 7, 8"),
        (b"", "label map is empty"),
        (IMAGE, "label map: a JPEG file, which does not keep values"),
    ],
)
def test_what_cannot_become_a_record(label, message):
    with pytest.raises(RejectedInput, match=message):
        to_record(ITEM, RawSample(IMAGE, label), RULE, KEEP)


def test_files_that_change_between_image_and_label(make_root):
    class Restless(FolderSource):
        def read(self, item):
            raw = super().read(item)
            (self.root / item.label_path).write_bytes(raw.label + b"more")
            return raw

    root = make_root(training=1)
    source = Restless(root, ("a",) * 5, RULE)
    item = source.item("training", "training_0000.jpg")
    with pytest.raises(RejectedInput, match="changed during the build"):
        read_records(source, item, source.stamp(item), KEEP)
