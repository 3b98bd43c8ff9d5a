import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from maskshards.preprocess.errors import RejectedInput
from maskshards.preprocess.inputs.label_file import decode_label_file, npy_bytes


def encode(array_or_image):
    image = array_or_image if isinstance(array_or_image, Image.Image) else Image.fromarray(array_or_image)
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def test_label_files_keep_their_values():
    values = np.array([[0, 1, 150], [255, 7, 9]], np.uint8)
    assert decode_label_file(encode(values)).tolist() == values.tolist()
    wide = np.array([[0, 300, 65535]], np.uint16)
    assert decode_label_file(encode(wide)).tolist() == wide.tolist()
    palette = Image.frombytes("P", (3, 2), values.tobytes())
    palette.putpalette(bytes(range(256)) * 3)
    assert decode_label_file(encode(palette)).tolist() == values.tolist()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_grey_in_several_equal_channels_is_the_grey(mode):
    values = np.array([[0, 1, 150], [255, 7, 9]], np.uint8)
    assert decode_label_file(encode(Image.fromarray(values).convert(mode))).tolist() == values.tolist()


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_of_few_bits_keeps_its_values(bits):
    """Packed here by hand, since Pillow writes no grey of 2 or 4 bits."""
    values = np.arange(16, dtype=np.uint8).reshape(2, 8) % (1 << bits)
    planes = np.unpackbits(values[..., None], axis=2)[..., 8 - bits :].reshape(2, -1)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in planes)
    header = struct.pack(">IIBBBBB", 8, 2, bits, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    chunks = (struct.pack(">I", len(x)) + n + x + struct.pack(">I", zlib.crc32(n + x)) for n, x in parts)
    assert decode_label_file(b"\x89PNG\r\n\x1a\n" + b"".join(chunks)).tolist() == values.tolist()


def test_one_bit_masks_are_0_and_1():
    values = np.array([[0, 1, 1], [1, 0, 0]], np.uint8)
    assert decode_label_file(encode(Image.fromarray(values * 255).convert("1"))).tolist() == values.tolist()


def test_a_gif_keeps_its_values():
    values = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
    image = Image.fromarray(values)
    image.putpalette([9, 9, 9, 255, 0, 0, 0, 255, 0])
    out = io.BytesIO()
    image.save(out, "GIF")
    assert decode_label_file(out.getvalue()).tolist() == values.tolist()


def written(image, kind="PNG", **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


TURNED = Image.Exif()
TURNED[0x0112] = 3
COLOURED = Image.fromarray(np.array([[[1, 1, 1], [1, 1, 2]]], np.uint8))
TWO_FRAMES = {"save_all": True, "append_images": [Image.new("L", (4, 4), 9)]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (written(COLOURED), r"label map is a 8-bit RGB PNG; expected one channel, or equal ones.*--colours"),
        (written(COLOURED.convert("RGBA")), "label map is a 8-bit RGB with alpha PNG; expected one channel"),
        (written(Image.new("LA", (2, 2), (3, 254))), "grey with alpha PNG with transparent pixels"),
        (written(Image.new("L", (4, 4)), **TWO_FRAMES), "animated PNG"),
        (written(Image.new("L", (4, 4)), "GIF", **TWO_FRAMES), "animated GIF"),
        (
            written(Image.new("L", (4, 4)), "JPEG"),
            "label map: a JPEG file, which does not keep values; expected",
        ),
        (
            written(Image.new("RGB", (9, 9)), "WEBP"),
            "label map: a WebP file; expected PNG, TIFF, BMP, GIF or NPY",
        ),
        (written(Image.new("L", (4, 4)), exif=TURNED), "label map has orientation 3: viewers turn it"),
        (written(Image.new("L", (4, 4)), "TIFF", tiffinfo={274: 6}), "label map has orientation 6"),
        (b"MATLAB 5.0", "label map: an unknown format"),
    ],
)
def test_label_maps_of_other_kinds_are_refused(data, message):
    with pytest.raises(RejectedInput, match=message):
        decode_label_file(data)


def test_no_flipped_bit_becomes_another_label():
    """Pillow alone lets one in twelve of them through."""
    values = np.random.default_rng(0).integers(0, 9, (12, 16), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    good, refused = encode(values), 0
    rng = np.random.default_rng(1)
    for place, bit in zip(rng.integers(8, len(good), 400), rng.integers(0, 8, 400), strict=True):
        broken = bytearray(good)
        broken[place] ^= 1 << bit
        try:
            assert np.array_equal(decode_label_file(bytes(broken)), values)
        except RejectedInput:
            refused += 1
    assert refused > 380


def test_broken_and_bloated_label_files():
    rng = np.random.default_rng(0)
    good = encode(rng.integers(0, 9, (64, 64), dtype=np.uint8))
    with pytest.raises(RejectedInput, match="label map: truncated PNG"):
        decode_label_file(good[: len(good) // 2])
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    chunk = b"IHDR" + header
    bomb = good[:8] + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + good[33:]
    with pytest.raises(RejectedInput, match="claims 60000x60000 pixels"):
        decode_label_file(bomb)


def tiff(array, **words):
    out = io.BytesIO()
    Image.fromarray(array).save(out, "TIFF", **words)
    return out.getvalue()


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int32])
def test_tiff_label_maps_keep_their_values(kind):
    values = np.array([[0, 1, 200], [3, 0, 2]], kind)
    found = decode_label_file(tiff(values, compression="tiff_deflate"))
    assert found.tolist() == values.tolist()
    assert found.dtype == (np.uint8 if kind is np.uint8 else np.uint16)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tiff(np.zeros((2, 2), np.float32)), "TIFF of floating-point pixels"),
        (tiff(np.array([[[1, 1, 2]]], np.uint8)), "TIFF of mode RGB; expected one channel.*--colours"),
        (tiff(np.array([[-1, 0]], np.int32)), "label values from -1 to 0; 0 to 65535 are possible"),
        (tiff(np.array([[70000, 0]], np.int32)), "label values from 0 to 70000"),
        (tiff(np.zeros((2, 2), np.uint8), save_all=True, append_images=[Image.new("L", (2, 2))]), "pages"),
        (tiff(np.zeros((2, 2), np.uint8))[:60], "label map: "),
        (npy_bytes(np.zeros((2, 2, 2), np.uint8)), r"NPY of uint8, shape \(2, 2, 2\)"),
        (npy_bytes(np.zeros((2, 2))), "NPY of float64"),
        (npy_bytes(np.zeros((2, 2), np.uint8))[:-1], "not a whole NPY file"),
        (npy_bytes(np.zeros((1, 1), np.uint8)).replace(b"(1, 1)", b"(99999, 99999)"), "label map: "),
    ],
)
def test_label_files_that_hold_no_labels(data, message):
    with pytest.raises(RejectedInput, match=message):
        decode_label_file(data)


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 1), (1, 2, 3)])
@pytest.mark.parametrize("kind", [bool, np.uint8, np.int64])
def test_npy_label_maps_of_one_band(shape, kind):
    values = np.array([[0, 1, 1], [1, 0, 0]])
    found = decode_label_file(npy_bytes(values.astype(kind).reshape(shape)))
    assert found.tolist() == values.tolist()
    assert found.dtype == (np.uint16 if kind is np.int64 else np.uint8)


def test_grey_tiffs_of_few_bits_and_of_equal_channels():
    values = np.array([[0, 1, 1], [1, 0, 0]], np.uint8)
    assert decode_label_file(tiff(values.astype(bool))).tolist() == values.tolist()
    assert decode_label_file(tiff(np.stack([values * 7] * 3, -1))).tolist() == (values * 7).tolist()
    tifffile = pytest.importorskip("tifffile", reason="the extra 'deep' is not installed")
    pytest.importorskip("imagecodecs", reason="the extra 'deep' is not installed")
    for pixels, words in (
        ({"data": values, "bitspersample": 4}, "TIFF of 4-bit L pixels"),
        ({"data": np.stack([values.astype(np.uint16)] * 3, -1), "photometric": "rgb"}, "TIFF of 16-bit RGB"),
    ):
        out = io.BytesIO()
        tifffile.imwrite(out, **pixels)
        with pytest.raises(RejectedInput, match=words):
            decode_label_file(out.getvalue())


def test_a_tiff_beyond_4_gb_is_one_too():
    tifffile = pytest.importorskip("tifffile", reason="the extra 'deep' is not installed")
    values, out = np.array([[0, 1, 2], [2, 1, 0]], np.uint8), io.BytesIO()
    tifffile.imwrite(out, values, bigtiff=True)
    assert decode_label_file(out.getvalue()).tolist() == values.tolist()


@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_label_maps(order):
    values = np.asarray(np.arange(12).reshape(3, 4) * 90, dtype=np.int64, order=order)
    found = decode_label_file(npy_bytes(values))
    assert found.dtype == np.uint16
    assert found.tolist() == values.tolist()


def test_a_mask_in_a_jpeg_is_read_where_every_value_has_one_of_two_meanings():
    values = np.zeros((40, 56), np.uint8)
    values[9:31, 13:39] = 255
    out = io.BytesIO()
    Image.fromarray(values).convert("RGB").save(out, "JPEG", quality=60)
    with pytest.raises(RejectedInput, match=r"does not keep values.*--mapping '\{\"0-127\": 0"):
        decode_label_file(out.getvalue())
    found = decode_label_file(out.getvalue(), lossy=True)
    assert len(np.unique(found)) > 2
    assert np.array_equal(found >= 128, values == 255)
    with pytest.raises(RejectedInput, match="label map: JPEG does not decode cleanly"):
        decode_label_file(out.getvalue()[:-30], lossy=True)
    red = io.BytesIO()
    Image.fromarray(np.stack([values, 0 * values, 0 * values], -1)).save(red, "JPEG")
    with pytest.raises(RejectedInput, match="a JPEG file with colours"):
        decode_label_file(red.getvalue(), lossy=True)


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGB"])
def test_bmp_holds_what_was_written(mode):
    values = np.random.default_rng(4).integers(0, 2 if mode == "1" else 256, (9, 13)).astype(np.uint8)
    if mode == "P":
        image = Image.frombytes("P", (13, 9), values.tobytes())
        image.putpalette(np.random.default_rng(5).permutation(256).astype(np.uint8).repeat(3).tobytes())
    else:
        image = Image.fromarray(values * 255 if mode == "1" else values).convert(mode)
    assert decode_label_file(written(image, "BMP")).tolist() == values.tolist()


def test_a_bmp_of_eight_bits_with_two_colours_is_not_taken_for_one_of_one_bit():
    rows = bytes([0, 1, 1, 0]) * 2
    palette = bytes([0, 0, 0, 0, 255, 255, 255, 0])
    info = struct.pack("<IiiHHIIiiII", 40, 4, 2, 1, 8, 0, len(rows), 0, 0, 2, 2)
    data = b"BM" + struct.pack("<IHHI", 62 + len(rows), 0, 0, 62) + info + palette + rows
    with Image.open(io.BytesIO(data)) as image:
        taken_for_one_bit = image.mode == "1"
    if taken_for_one_bit:
        with pytest.raises(RejectedInput, match="label map is a BMP of 8 bits, mode 1"):
            decode_label_file(data)
    else:
        assert decode_label_file(data).tolist() == [[0, 1, 1, 0]] * 2
    with pytest.raises(RejectedInput):
        decode_label_file(data[:-5])
