"""What comes of images that are not kept: odd EXIF, other formats, scaling, tiles, limits of the target."""

import struct

import numpy as np
import pytest
from PIL import Image

from maskshards.preprocess.errors import RejectedInput
from maskshards.preprocess.inputs import image_policy, pillow, reencode
from maskshards.preprocess.inputs.image_policy import ImagePolicy
from maskshards.preprocess.inputs.images import encode_images
from maskshards.preprocess.inputs.reencode import scaled_size
from tests.preprocess.inputs.encoded import NOISE, decoded, encode

CONVERT = ImagePolicy(convert=True)
RNG = np.random.default_rng(3)


@pytest.mark.parametrize(
    ("size", "limit", "expected"),
    [
        ((40, 56), 0, (40, 56)),
        ((40, 56), 50, (40, 56)),
        ((40, 50), 20, (20, 25)),
        ((50, 41), 20, (24, 20)),
        ((9, 3), 1, (3, 1)),
    ],
)
def test_scaled_size(size, limit, expected):
    assert scaled_size(*size, limit) == expected


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000", "PPM", "TIFF", "WEBP"])
def test_whole_files_of_other_formats_are_read(kind):
    smooth = Image.fromarray(np.linspace(0, 255, 40 * 56).reshape(40, 56).astype(np.uint8)).convert("RGB")
    (found,) = encode_images(encode(smooth, kind), CONVERT)
    assert found.image_format == "jpg"
    assert abs(decoded(found).astype(int) - np.asarray(smooth)).max() <= 12


def test_heic_is_read_where_its_extra_is_installed():
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    (found,) = encode_images(encode(Image.new("RGB", (56, 40), (200, 30, 60)), "HEIF"), CONVERT)
    assert abs(decoded(found).astype(int) - (200, 30, 60)).max() <= 12


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\nshowpage\n", "a PostScript file"),
        (b"<!DOCTYPE html><html><body>404", "a web page .a failed download. .*; get the image itself"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        (b"\0" * 128 + b"DICM" + b"\0" * 20, "a DICOM file"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 20, "an HDF5 file"),
        (b"hello, world", "an unknown format"),
    ],
)
def test_what_is_not_in_the_list_is_named_and_not_called_damaged(data, words):
    for policy in (ImagePolicy(), CONVERT):
        with pytest.raises(RejectedInput, match=words) as refused:
            encode_images(data, policy)
        assert "good copy" not in str(refused.value)
        assert "BytesIO" not in str(refused.value)


def odd_exif(*entries, turn=6):
    """A JPEG of 64x48 px with an orientation and more EXIF entries (tag, type, count, value)."""
    picture = encode(Image.fromarray(RNG.integers(0, 256, (48, 64, 3), dtype=np.uint8)), "JPEG")
    entries = sorted([(0x112, 3, 1, struct.pack("<H", turn)), *entries])
    fields = b"".join(struct.pack("<HHI", t, k, n) + v.ljust(4, b"\0") for t, k, n, v in entries)
    tiff = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + fields + bytes(4)
    body = b"Exif\0\0" + tiff
    return picture[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + picture[2:]


@pytest.mark.parametrize(
    "entry",
    [
        (0x11A, 7, 4, b"\1\2\3\4"),  # XResolution as bytes
        (0x11B, 2, 3, b"72\0"),  # YResolution as text
        (0x10F, 3, 2, b"\1\0\2\0"),  # Make as numbers
        (0x128, 3, 1, b"\2\0"),
        (0x8769, 4, 1, b"\xff\xff\xff\x7f"),  # a folder of tags beyond the end
        (0x100, 5, 9, b"\0\0\0\0"),
    ],
)
def test_odd_tags_do_not_get_in_the_way_of_turning(entry):
    data = odd_exif(entry)
    with pillow.opened(data, ("JPEG",)) as image:
        expected = np.rot90(np.asarray(image), -1)
    (found,) = encode_images(data, CONVERT)
    assert (found.height, found.width) == (64, 48)
    assert abs(decoded(found).astype(int) - expected).mean() < 12


@pytest.mark.parametrize("turn", [0, 1, 9, 65535])
def test_other_orientations_are_upright(turn):
    data = odd_exif(turn=turn)
    (found,) = encode_images(data, ImagePolicy())
    assert found.data == data


def test_an_orientation_that_is_no_number_is_upright():
    data = odd_exif().replace(struct.pack("<HHI", 0x112, 3, 1), struct.pack("<HHI", 0x112, 2, 2))
    (found,) = encode_images(data, ImagePolicy())
    assert found.data == data


@pytest.mark.parametrize("turn", range(2, 9))
def test_a_tiff_is_turned_once(turn):
    tags = Image.Exif()
    tags[0x0112] = turn
    smooth = np.linspace(0, 255, 40 * 56).reshape(40, 56).astype(np.uint8)
    for mode in ("RGB", "I;16"):
        pixels = smooth if mode == "RGB" else smooth.astype(np.uint16) * 257
        picture = Image.fromarray(pixels)
        data = encode(picture.convert("RGB") if mode == "RGB" else picture, "TIFF", exif=tags)
        (found,) = encode_images(data, ImagePolicy(convert=True, scale=(0, 65535)))
        flips = {2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1], 5: lambda a: a.T}
        flips |= {6: lambda a: a[::-1].T, 7: lambda a: a[::-1, ::-1].T, 8: lambda a: a[:, ::-1].T}
        expected = flips[turn](smooth)
        assert (found.height, found.width) == expected.shape
        assert abs(decoded(found)[..., 0].astype(int) - expected).max() <= 8


def test_limits_of_the_target_are_known_before_encoding():
    data = encode(Image.fromarray(np.zeros((8, 70000, 3), np.uint8)), "TIFF")
    with pytest.raises(RejectedInput, match=r"70000x8 pixels cannot be stored: jpg files take .* 65500"):
        encode_images(data, CONVERT)
    (found,) = encode_images(data, ImagePolicy(convert=True, max_short_side=4))
    assert (found.height, found.width) == (4, 35000)


def test_images_beyond_the_formats_limit_are_scaled_and_nothing_else(monkeypatch):
    for module in (pillow, image_policy, reencode):
        monkeypatch.setattr(module, "MAX_PIXELS", 40 * 56 - 1)
    data = encode(Image.fromarray(NOISE), "PNG")
    with pytest.raises(RejectedInput, match=r"claims 56x40 pixels; 1 to 2239 .*--max-short-side"):
        encode_images(data, ImagePolicy())
    (found,) = encode_images(data, ImagePolicy(max_short_side=20))
    expected = np.asarray(Image.fromarray(NOISE).resize((28, 20), Image.Resampling.LANCZOS))
    assert (decoded(found) == expected).all()
    with pytest.raises(RejectedInput, match="pixels; 1 to 2239"):
        encode_images(data, ImagePolicy(max_short_side=40))  # would be kept as it is
    monkeypatch.setattr(image_policy, "MAX_SOURCE_PIXELS", 40 * 56 - 1)
    with pytest.raises(RejectedInput, match="pixels; 1 to 2239"):
        encode_images(data, ImagePolicy(max_short_side=20))


def test_tiles_put_together_are_the_image():
    policy = ImagePolicy(tile=24, overlap=5)
    found = encode_images(encode(Image.fromarray(NOISE), "PNG"), policy)
    whole = np.zeros_like(NOISE)
    seen = np.zeros((40, 56), int)
    for tile in found:
        top, left = tile.corner
        assert (tile.height, tile.width, tile.source_height, tile.source_width) == (24, 24, 40, 56)
        whole[top : top + 24, left : left + 24] = decoded(tile)
        seen[top : top + 24, left : left + 24] += 1
    assert (whole == NOISE).all()
    assert seen.min() == 1
    (small,) = encode_images(encode(Image.fromarray(NOISE), "PNG"), ImagePolicy(tile=56))
    assert (small.corner, small.note) == (None, "")


def test_of_several_frames_the_note_tells_the_first():
    frames = [Image.new("L", (56, 40), value) for value in (10, 200)]
    (found,) = encode_images(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]), CONVERT)
    assert abs(decoded(found).astype(int) - 10).max() <= 1
    assert "the first of 2 frames" in found.note
