import io

import numpy as np
import pytest
from PIL import Image

from maskshards.preprocess.errors import RejectedInput
from maskshards.preprocess.inputs.image_policy import ImagePolicy
from maskshards.preprocess.inputs.images import encode_images
from maskshards.preprocess.inputs.jpeg import DamagedImage, prove_before_converting, prove_jpeg


def picture(mode="RGB"):
    out = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(out, "JPEG")
    return out.getvalue()


@pytest.mark.parametrize(("mode", "colour"), [("RGB", "YCbCr"), ("L", "Gray"), ("CMYK", "CMYK")])
def test_whole_files_pass_and_cut_ones_do_not(mode, colour):
    data = picture(mode)
    prove_jpeg(data, colour)
    prove_before_converting(data)
    for cut in (data[: len(data) // 2], data[: len(data) // 2] + b"\xff\xd9"):
        with pytest.raises(DamagedImage, match="does not decode cleanly"):
            prove_jpeg(cut, colour)
        with pytest.raises(DamagedImage):
            prove_before_converting(cut)


def test_a_header_that_libjpeg_does_not_read_is_left_to_pillow():
    data = b"\xff\xd8\xff no jpeg"
    assert prove_before_converting(data) is None
    with pytest.raises(RejectedInput, match="an unknown format"):  # as Pillow finds
        encode_images(data, ImagePolicy(convert=True))
