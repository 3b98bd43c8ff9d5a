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


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "1"])
def test_label_maps_of_other_modes_are_refused(mode):
    with pytest.raises(RejectedInput, match=r"label map is a .* PNG; expected one channel"):
        decode_label_file(encode(Image.new(mode, (4, 4))))


def test_broken_and_bloated_label_files():
    rng = np.random.default_rng(0)
    good = encode(rng.integers(0, 9, (64, 64), dtype=np.uint8))
    with pytest.raises(RejectedInput, match="label map: it does not decode"):
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
        (tiff(np.zeros((2, 2, 3), np.uint8)), r"TIFF of RGB \(3 bands\) pixels.*--colours"),
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


@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_label_maps(order):
    values = np.asarray(np.arange(12).reshape(3, 4) * 90, dtype=np.int64, order=order)
    found = decode_label_file(npy_bytes(values))
    assert found.dtype == np.uint16
    assert found.tolist() == values.tolist()
