"""One test per row of the image policy table in docs/custom-data.md, and the ways in which a file can lie."""

import struct
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from maskshards.preprocess.errors import RejectedInput
from maskshards.preprocess.inputs.image_policy import ImagePolicy
from maskshards.preprocess.inputs.images import encode_images
from tests.preprocess.inputs.encoded import NOISE, decoded, encode

KEEP = ImagePolicy()
CONVERT = ImagePolicy(convert=True)


def encode_image(data, policy):
    (found,) = encode_images(data, policy)
    return found


def rgb():
    return Image.fromarray(NOISE)


KEPT = {
    "baseline JPEG": lambda: encode(rgb(), "JPEG"),
    "progressive JPEG": lambda: encode(rgb(), "JPEG", progressive=True),
    "grey JPEG": lambda: encode(rgb().convert("L"), "JPEG"),
    "grey PNG": lambda: encode(rgb().convert("L"), "PNG"),
    "palette PNG": lambda: encode(rgb().quantize(256), "PNG", bits=8),
    "RGB PNG": lambda: encode(rgb(), "PNG"),
    "upright EXIF": lambda: encode(rgb(), "JPEG", exif=exif(1)),
}


def exif(turn):
    tags = Image.Exif()
    tags[0x0112] = turn
    return tags


@pytest.mark.parametrize("name", KEPT)
def test_kept_as_they_are(name):
    data = KEPT[name]()
    for policy in (KEEP, CONVERT):
        found = encode_image(data, policy)
        assert found.data == data
        assert found.image_format == ("png" if "PNG" in name else "jpg")
        assert (found.height, found.width, found.note) == (40, 56, "")


def ycck():
    """A JPEG of four inks whose Adobe segment says that three of them are stored as YCbCr."""
    data = bytearray(encode(rgb().convert("CMYK"), "JPEG"))
    data[data.index(b"Adobe") + 11] = 2
    return bytes(data)


REFUSED = {
    "CMYK JPEG": (lambda: encode(rgb().convert("CMYK"), "JPEG"), "CMYK JPEG"),
    "YCCK JPEG": (ycck, "YCCK JPEG"),
    "grey PNG with alpha": (lambda: encode(rgb().convert("LA"), "PNG"), "grey with alpha PNG"),
    "1-bit PNG": (lambda: encode(rgb().convert("1"), "PNG"), "1-bit grey PNG"),
    "2-bit palette PNG": (lambda: encode(rgb().quantize(4), "PNG", bits=2), "2-bit palette PNG"),
    "PNG with alpha": (lambda: encode(rgb().convert("RGBA"), "PNG"), "RGB with alpha PNG with transparency"),
    "palette PNG with a transparent colour": (
        lambda: encode(rgb().quantize(256), "PNG", bits=8, transparency=0),
        "palette PNG with transparency",
    ),
    "4-bit palette PNG": (lambda: encode(rgb().quantize(16), "PNG", bits=4), "4-bit palette PNG"),
    "WebP": (lambda: encode(rgb(), "WEBP"), "WebP"),
    "BMP": (lambda: encode(rgb(), "BMP"), "BMP"),
    "GIF": (lambda: encode(rgb().quantize(256), "GIF"), "GIF"),
    "TIFF": (lambda: encode(rgb(), "TIFF"), "TIFF"),
    "EXIF-rotated JPEG": (lambda: encode(rgb(), "JPEG", exif=exif(6)), "EXIF orientation 6"),
    "EXIF-rotated PNG": (lambda: encode(rgb(), "PNG", exif=exif(8)), "EXIF orientation 8"),
    "animated PNG": (
        lambda: encode(rgb(), "PNG", save_all=True, append_images=[Image.new("RGB", (56, 40))]),
        "animated PNG",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_way_out_and_converted_on_request(name):
    make, words = REFUSED[name]
    data = make()
    with pytest.raises(RejectedInput, match=words) as refused:
        encode_image(data, KEEP)
    assert "--convert" in str(refused.value)
    found = encode_image(data, CONVERT)
    size = (56, 40) if "rotated" in name else (40, 56)
    pixels = decoded(found)
    assert pixels.shape == (*size, 3)
    assert pixels.dtype == np.uint8
    assert (found.height, found.width) == (found.source_height, found.source_width) == size
    assert words.split()[0] in found.note
    assert encode_image(found.data, KEEP).note == ""


def test_conversion_keeps_the_picture():
    smooth = Image.fromarray(np.linspace(0, 255, 40 * 56).reshape(40, 56).astype(np.uint8)).convert("RGB")
    expected = np.asarray(smooth).astype(int)
    webp = decoded(encode_image(encode(smooth, "WEBP", lossless=True), CONVERT))
    assert abs(webp.astype(int) - expected).max() <= 6
    turned = decoded(encode_image(encode(smooth, "PNG", exif=exif(3)), CONVERT))
    assert (turned == expected[::-1, ::-1]).all()
    see_through = rgb().convert("RGBA")
    see_through.putalpha(0)
    assert (decoded(encode_image(encode(see_through, "PNG"), CONVERT)) == NOISE).all()


def test_large_images_are_scaled_only_on_request():
    data = encode(rgb(), "JPEG")
    found = encode_image(data, ImagePolicy(max_short_side=20))
    assert decoded(found).shape == (20, 28, 3)
    assert (found.source_height, found.source_width) == (40, 56)
    assert "Lanczos to 28x20" in found.note
    assert "quality 95 4:4:4" in found.note
    assert encode_image(data, ImagePolicy(max_short_side=40)).data == data
    lossless = encode_image(encode(rgb(), "PNG"), ImagePolicy(max_short_side=20))
    assert (decoded(lossless) == np.asarray(rgb().resize((28, 20), Image.Resampling.LANCZOS))).all()


def test_damaged_files():
    jpeg, lossless = encode(rgb(), "JPEG"), encode(rgb(), "PNG")
    for data, words in (
        (b"", "0 bytes"),
        (b"hello, world", "unknown format"),
        (jpeg[: len(jpeg) // 2], "JPEG does not decode cleanly"),
        (jpeg[: len(jpeg) // 2] + b"\xff\xd9", "JPEG does not decode cleanly"),
        (jpeg[:12], "JPEG header is broken"),
        (lossless[: len(lossless) // 2], "truncated PNG"),
    ):
        for policy in (KEEP, CONVERT, ImagePolicy(max_short_side=8)):
            with pytest.raises(RejectedInput, match=words if policy is not CONVERT else None):
                encode_image(data, policy)


def test_damage_is_not_converted_away():
    for data in (
        encode(rgb().convert("CMYK"), "JPEG"),
        encode(rgb(), "JPEG", exif=exif(6)),
        encode(rgb(), "JPEG"),
        encode(rgb(), "WEBP"),
        encode(rgb().convert("RGBA"), "PNG"),
    ):
        for end in (b"", b"\xff\xd9"):
            with pytest.raises(RejectedInput, match=r"decode|truncated PNG"):
                encode_image(data[: len(data) * 2 // 3] + end, CONVERT)


@pytest.mark.parametrize("progressive", [False, True])
def test_the_quick_proof_finds_what_a_full_decode_finds(progressive):
    good = encode(rgb(), "JPEG", progressive=progressive)
    rng, found = np.random.default_rng(6), []
    for number in range(60):
        data = bytearray(good)
        data[rng.integers(400, len(good) - 2)] ^= 1 << rng.integers(0, 8)
        del data[len(good) - number * (number % 3) :]
        try:
            simplejpeg.decode_jpeg(bytes(data))
            full = True
        except ValueError as error:
            full = "extraneous bytes" in str(error)
        try:
            quick = bool(encode_image(bytes(data), KEEP))
        except RejectedInput:
            quick = False
        assert quick == full
        found.append(full)
    assert 5 < sum(found) < 55


def test_a_jpeg_whose_header_lies_is_refused():
    data = bytearray(encode(rgb(), "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 2] = (400).to_bytes(2, "big")
    for policy in (KEEP, CONVERT):
        with pytest.raises(RejectedInput, match="does not decode cleanly"):
            encode_image(bytes(data), policy)
    data[at : at + 4] = (65500).to_bytes(2, "big") * 2
    with pytest.raises(RejectedInput, match="claims 65500x65500 pixels"):
        encode_image(bytes(data), KEEP)
    with pytest.raises(RejectedInput, match="pixels"):
        encode_image(bytes(data), CONVERT)


def test_a_png_bomb_is_refused_by_its_header():
    good = encode(rgb(), "PNG")
    chunk = b"IHDR" + struct.pack(">IIBBBBB", 50000, 50000, 8, 2, 0, 0, 0)
    bomb = good[:8] + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + good[33:]
    with pytest.raises(RejectedInput, match="claims 50000x50000 pixels"):
        encode_image(bomb, KEEP)
    with pytest.raises(RejectedInput, match="pixels"):
        encode_image(bomb, CONVERT)


def test_padding_between_segments_is_no_damage():
    data = encode(rgb(), "JPEG")
    padded = data[:-2] + bytes(range(64)) * 64 + data[-2:]
    assert encode_image(padded, KEEP).data == padded
