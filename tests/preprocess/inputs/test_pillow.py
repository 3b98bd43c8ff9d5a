import io

import numpy as np
import pytest
from PIL import Image

from maskshards.preprocess.errors import RejectedInput
from maskshards.preprocess.inputs import pillow
from maskshards.preprocess.inputs.pillow import check_size, opened
from maskshards.shards.format.rle import MAX_PIXELS


def encode(kind="PNG", size=(7, 5)):
    out = io.BytesIO()
    Image.new("L", size, 3).save(out, kind)
    return out.getvalue()


def test_pixels_come_through():
    with opened(encode(), ("PNG",)) as image:
        assert np.asarray(image).tolist() == [[3] * 7] * 5


@pytest.mark.parametrize("data", [b"", b"hello", encode()[:-30], encode("BMP")])
def test_every_fault_is_one_type(data):
    with pytest.raises(RejectedInput, match="it does not decode"), opened(data, ("PNG",)) as image:
        image.load()


def test_large_images_are_judged_by_the_limit_of_the_format(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)  # Pillow warns above this
    with opened(encode(), ("PNG",)) as image:
        assert image.size == (7, 5)
    monkeypatch.setattr(pillow, "MAX_PIXELS", 34)
    with pytest.raises(RejectedInput, match="claims 7x5 pixels; 1 to 34"), opened(encode(), ("PNG",)):
        pass


def test_sizes():
    check_size(1, MAX_PIXELS)
    for size in ((0, 5), (5, 0), (1, MAX_PIXELS + 1)):
        with pytest.raises(RejectedInput, match="pixels"):
            check_size(*size)
