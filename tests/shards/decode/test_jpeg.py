"""Decoding against Pillow's own result, and refusal of everything that is not the promised image."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from maskshards.shards.decode.jpeg import decode_image
from maskshards.shards.errors import SampleError


@pytest.fixture
def picture():
    pixels = np.random.default_rng(0).normal(128, 40, (12, 16, 3)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels).resize((80, 61))


def encode(image, format_name, **options):
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def decoded(data, image_format, height=61, width=80):
    out = np.full((height, width, 3), 7, np.uint8)
    decode_image(data, image_format, out)
    return out


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}])
def test_jpeg_pixels_equal_pillows(picture, mode, options):
    data = encode(picture.convert(mode), "JPEG", **options)
    want = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(decoded(memoryview(data), "jpg"), want)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "1", "LA"])
def test_png_pixels_equal_pillows(picture, mode):
    data = encode(picture.convert(mode), "PNG")
    assert np.array_equal(decoded(data, "png"), np.asarray(picture.convert(mode).convert("RGB")))


def test_exif_orientation_is_left_alone(picture):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encode(picture, "JPEG", exif=exif)
    assert np.array_equal(decoded(turned, "jpg"), decoded(encode(picture, "JPEG"), "jpg"))


def test_a_jpeg_with_stray_bytes_is_left_to_pillow(picture):
    data = encode(picture, "JPEG")
    scan = data.index(b"\xff\xda")
    stray = data[:scan] + b"xx" + data[scan:]
    assert np.array_equal(decoded(stray, "jpg"), decoded(data, "jpg"))


@pytest.mark.parametrize(("image_format", "format_name"), [("jpg", "JPEG"), ("png", "PNG")])
def test_another_size_than_promised_is_refused_before_decoding(picture, image_format, format_name):
    data = encode(picture, format_name)
    with pytest.raises(SampleError, match=r"is 61x80 \(height x width\), its index says 80x61"):
        decoded(data, image_format, height=80, width=61)


@pytest.mark.parametrize(("image_format", "format_name"), [("jpg", "JPEG"), ("png", "PNG")])
@pytest.mark.parametrize("keep", [0, 1, 20, 40, 300, -200])
def test_truncation_is_a_typed_error(picture, image_format, format_name, keep):
    with pytest.raises(SampleError, match="image"):
        decoded(encode(picture, format_name)[:keep], image_format)


def test_a_png_bomb_never_allocates():
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )
    with pytest.raises(SampleError, match="60000x60000"):
        decoded(bomb, "png")


def test_other_formats_are_refused(picture):
    with pytest.raises(SampleError, match="'gif', expected 'jpg' or 'png'"):
        decoded(encode(picture, "GIF"), "gif")
    with pytest.raises(SampleError, match="no PNG"):
        decoded(encode(picture, "JPEG"), "png")
    with pytest.raises(SampleError, match="no readable JPEG"):
        decoded(encode(picture, "PNG"), "jpg")
