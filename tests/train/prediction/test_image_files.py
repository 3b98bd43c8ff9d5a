"""Files of people: every mode and format, EXIF of all kinds, hostile ones, and no program is ever started."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from maskshards.train.prediction import image_files as module
from maskshards.train.prediction.image_files import PredictError, can_read, image_px, read_image

RGB = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8))
MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16"]


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_read_as_rgb(mode, tmp_path):
    path = tmp_path / "image.tif"
    if mode == "I;16":
        Image.fromarray(np.array(RGB.convert("L")).astype(np.uint16) * 257).save(path)
        want = RGB.convert("L").convert("RGB")
    else:
        RGB.convert(mode).save(path)
        want = RGB.convert(mode).convert("RGB")
    assert np.array_equal(read_image(path), np.array(want))
    assert image_px(path) == 9 * 13


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF"])
def test_a_format_is_known_by_its_content(kind, tmp_path):
    path = tmp_path / "image.jpg"
    RGB.save(path, format=kind)
    assert read_image(path).shape == (9, 13, 3)


def test_a_palette_with_transparency_is_read_without_a_warning(tmp_path):
    picture = RGB.convert("P")
    picture.save(tmp_path / "p.png", transparency=bytes(range(256)))
    assert np.array_equal(read_image(tmp_path / "p.png"), np.array(picture.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    RGB.save(tmp_path / "a.png", exif=exif)
    from PIL import ImageOps

    with Image.open(tmp_path / "a.png") as image:
        want = np.array(ImageOps.exif_transpose(image))
    assert np.array_equal(read_image(tmp_path / "a.png"), want)


def test_odd_exif_means_upright(tmp_path):
    data = io.BytesIO()
    RGB.save(data, "JPEG")
    tag = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\xff\xff\xff\xff" + b"\xff" * 22
    jpeg = data.getvalue()
    segment = b"\xff\xe1" + struct.pack(">H", 2 + 6 + len(tag)) + b"Exif\0\0" + tag
    (tmp_path / "a.jpg").write_bytes(jpeg[:2] + segment + jpeg[2:])
    assert read_image(tmp_path / "a.jpg").shape == (9, 13, 3)


def test_postscript_under_another_name_starts_no_program(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    (tmp_path / "photo.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n"
    )
    with pytest.raises(PredictError, match="cannot be read as an image"):
        read_image(tmp_path / "photo.jpg")
    assert not (tmp_path / "ran").exists()


def png(width, height, extra=b""):
    data = io.BytesIO()
    RGB.save(data, "PNG")
    whole = data.getvalue()
    head = whole[:16] + struct.pack(">II", width, height) + whole[24:29]
    return head + struct.pack(">I", zlib.crc32(head[12:29])) + extra + whole[33:]


def text_bomb():
    body = b"k\0\0" + zlib.compress(b"\0" * (8 << 20))
    return struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot be read as an image"),
        (png(13, 9)[:60], "cannot be read as an image"),
        (png(30_000, 30_000), "is 30000x30000 px, more than the 512 Mpx"),
        (png(2**31 - 1, 2**31 - 1), "cut it into parts"),
        (png(13, 9, text_bomb()), "cannot be read as an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "cannot be read as an image"),
    ],
    ids=["empty", "cut", "large", "larger", "text", "svg"],
)
def test_hostile_files_are_refused_with_a_reason(content, words, tmp_path):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(PredictError, match=words):
        read_image(tmp_path / "a.png")


def test_pipes_and_devices_are_no_images(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "zero.png"):
        with pytest.raises(PredictError, match="is no regular file"):
            read_image(tmp_path / name)
        assert image_px(tmp_path / name) == 0


def test_large_images_are_read_without_pillows_limit_which_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    RGB.save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").shape == (9, 13, 3)
    assert Image.MAX_IMAGE_PIXELS == 20


def test_sixteen_bits_of_unknown_white_are_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 4000, np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(PredictError, match="up to 4000 only, as 8 or 12 bits kept in 16 do"):
        read_image(tmp_path / "a.png")
    Image.fromarray(np.zeros((4, 4), np.int32)).save(tmp_path / "b.tif")
    with pytest.raises(PredictError, match="has mode I"):
        read_image(tmp_path / "b.tif")


def test_heic_without_its_package_says_which(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_register_heif", lambda: None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    (tmp_path / "a.heic").write_bytes(b"x" * 100)
    with pytest.raises(PredictError, match=r"pip install 'maskshards\[heic\]'"):
        read_image(tmp_path / "a.heic")


def test_endings_that_can_be_read():
    assert can_read(".jpg")
    assert can_read(".avif")
    assert not can_read(".txt")
    assert not can_read(".eps")
