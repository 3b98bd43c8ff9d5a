"""Values that no screen shows as they are: 16 bits, 12 bits in 16, floats, many bands."""

import io

import numpy as np
import pytest
from PIL import Image

from maskshards.preprocess.errors import RejectedInput
from maskshards.preprocess.inputs.deep import scale_values
from maskshards.preprocess.inputs.image_policy import ImagePolicy
from maskshards.preprocess.inputs.images import encode_images
from tests.preprocess.inputs.encoded import decoded, encode

CONVERT = ImagePolicy(convert=True)
SIZE = (40, 56)
RAMP = np.linspace(0, 1, SIZE[0] * SIZE[1]).reshape(SIZE)


def tiff(pixels, **options):
    tifffile = pytest.importorskip("tifffile")
    out = io.BytesIO()
    tifffile.imwrite(out, pixels, **options)
    return out.getvalue()


def twelve_bits(*, bands=0):
    values = np.round(RAMP * 4095).astype(np.uint16)
    return np.stack([values, values[::-1], values[:, ::-1]], axis=-1) if bands == 3 else values


def deep_files():
    codecs = pytest.importorskip("imagecodecs")
    colour = twelve_bits(bands=3)
    return {
        "16-bit grey PNG": (encode(Image.fromarray(twelve_bits()), "PNG"), (0, 4095)),
        "16-bit RGB PNG": (codecs.png_encode(colour), (0, 4095)),
        "TIFF of 1 band of 16 bits": (encode(Image.fromarray(twelve_bits()), "TIFF"), (0, 4095)),
        "TIFF of 3 bands of 16 bits": (tiff(colour, photometric="rgb"), (0, 4095)),
        "TIFF of 1 band of 32 bits": (encode(Image.fromarray(RAMP.astype(np.float32)), "TIFF"), (0, 1)),
        "16-bit JPEG 2000": (codecs.jpeg2k_encode(colour), (0, 4095)),
    }


@pytest.mark.parametrize("name", list(deep_files()))
def test_deep_images_need_a_stated_scale_and_keep_their_contrast(name):
    data, scale = deep_files()[name]
    with pytest.raises(RejectedInput, match=r"--scale LOW:HIGH") as refused:
        encode_images(data, CONVERT)
    assert name in str(refused.value)
    (found,) = encode_images(data, ImagePolicy(convert=True, scale=scale))
    expected = np.round(RAMP * 255)
    wanted = [expected] * 3 if "grey" in name or "1 band" in name else None
    wanted = wanted or [expected, expected[::-1], expected[:, ::-1]]
    lossy = 0 if "PNG" in name else 14
    assert abs(decoded(found).astype(int) - np.stack(wanted, axis=-1)).max() <= max(1, lossy)
    assert f"values {scale[0]}..{scale[1]} as 0..255" in found.note


def test_scaling_is_that_of_the_definition():
    values = np.array([[-5, 0, 1, 127, 4095, 4096, 60000]])
    found, outside = scale_values(values, 0, 4095)
    assert found.tolist() == [[0, 0, 0, int(127 / 4095 * 255 + 0.5), 255, 255, 255]]
    assert outside == 3
    odd, outside = scale_values(np.array([[np.nan, np.inf, -np.inf, 0.5]]), 0, 1)
    assert odd.tolist() == [[0, 255, 0, 128]]
    assert outside == 3


def test_bands_are_chosen_by_number():
    bands = np.random.default_rng(1).integers(0, 200, (*SIZE, 5), dtype=np.uint8)
    bands[...] = bands[:1, :1]  # flat colours survive a JPEG
    for planar in ("contig", "separate"):
        stored = bands if planar == "contig" else np.moveaxis(bands, -1, 0)
        data = tiff(stored, photometric="minisblack", planarconfig=planar)
        with pytest.raises(RejectedInput, match="name the bands for red, green and blue: --bands"):
            encode_images(data, CONVERT)
        (found,) = encode_images(data, ImagePolicy(convert=True, bands=(5, 3, 1)))
        assert abs(decoded(found).astype(int) - bands[..., [4, 2, 0]]).max() <= 3
        assert "bands 5,3,1 of 5" in found.note
        with pytest.raises(RejectedInput, match="names band 6, it has 5"):
            encode_images(data, ImagePolicy(convert=True, bands=(6, 3, 1)))


def test_near_infrared_is_dropped_and_said_so():
    bands = np.full((*SIZE, 4), 1000, np.uint16)
    (found,) = encode_images(tiff(bands, photometric="rgb"), ImagePolicy(convert=True, scale=(0, 2000)))
    assert abs(decoded(found).astype(int) - 128).max() <= 1
    assert "band 4 dropped" in found.note


def test_signed_values_and_those_that_count_down_are_never_guessed():
    with pytest.raises(RejectedInput, match="--scale"):
        encode_images(tiff(np.zeros(SIZE, np.int8)), CONVERT)
    upside_down = tiff(np.zeros(SIZE, np.uint16), photometric="miniswhite")
    with pytest.raises(RejectedInput, match="count down from white"):
        encode_images(upside_down, ImagePolicy(convert=True, scale=(0, 65535)))


def test_bands_do_not_touch_ordinary_images():
    data = encode(Image.new("RGB", (56, 40), (10, 20, 30)), "JPEG")
    (found,) = encode_images(data, ImagePolicy(convert=True, bands=(3, 2, 1)))
    assert found.data == data


def test_damaged_deep_files_are_refused():
    data, scale = deep_files()["16-bit RGB PNG"]
    with pytest.raises(RejectedInput, match="truncated PNG"):
        encode_images(data[: len(data) // 2], ImagePolicy(convert=True, scale=scale))
    with pytest.raises(RejectedInput):
        encode_images(
            deep_files()["TIFF of 3 bands of 16 bits"][0][:300], ImagePolicy(convert=True, scale=scale)
        )
