"""Arrays of one meaning are read, arrays of two meanings are refused in a sentence that settles it."""

import numpy as np
import pytest
import torch
from PIL import Image

from maskshards.train.prediction.image_arrays import as_rgb, is_many
from maskshards.train.prediction.image_files import PredictError

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
RGB[0, 0] = 255
READ_ONLY = RGB.copy()
READ_ONLY.setflags(write=False)

SAME = {
    "plain": RGB,
    "mirrored channels": RGB[..., ::-1].copy()[..., ::-1],
    "mirrored rows": RGB[::-1].copy()[::-1],
    "every second of a larger one": RGB.repeat(2, axis=0)[::2],
    "fortran order": np.asfortranarray(RGB),
    "read only": READ_ONLY,
    "alpha": np.dstack([RGB, np.full(RGB.shape[:2], 7, np.uint8)]),
    "channels first": RGB.transpose(2, 0, 1),
    "16 bits": RGB.astype(np.uint16) * 257,
    "PIL": Image.fromarray(RGB),
    "PIL with alpha": Image.fromarray(RGB).convert("RGBA"),
    "tensor": torch.from_numpy(RGB),
    "tensor, channels first": torch.from_numpy(RGB).permute(2, 0, 1),
    "tensor that wants a gradient's neighbour": torch.from_numpy(RGB)[:, :, [0, 1, 2]],
}


@pytest.mark.parametrize("name", SAME)
def test_one_image_in_many_forms(name):
    found = as_rgb(SAME[name])
    assert np.array_equal(found, RGB)
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    assert found.flags.writeable


@pytest.mark.parametrize("grey", [RGB[..., 0], RGB[..., :1], Image.fromarray(RGB[..., 0]), RGB[None, ..., 0]])
def test_grey_is_repeated(grey):
    assert np.array_equal(as_rgb(grey), RGB[..., :1].repeat(3, axis=2))


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (RGB / 255, r"float64 could be on the scale 0\.\.1 or 0\.\.255; pass uint8"),
        (RGB.astype(np.float32), "float32 could be"),
        (torch.from_numpy(RGB).float(), "float32 could be"),
        (RGB.astype(np.int64), "int64 is not read; pass uint8"),
        (RGB > 3, "bool is not read; pass uint8"),
        (RGB.astype(np.uint16), "16-bit values up to 255 only"),
        (RGB.astype(np.uint16) * 16, r"16-bit values up to 40\d\d only"),
        (RGB[None], r"\(1, 6, 9, 3\) is a batch: pass list\(batch\)"),
        (RGB[:0], r"\(0, 9, 3\) is no image; expected"),
        (RGB[0, 0], r"\(3,\) is no image"),
        (RGB[:, :, :2], r"\(6, 9, 2\) is no image"),
        (7, "a int is no image here; expected a path, a PIL image"),
        (None, "a NoneType is no image"),
        (Image.new("F", (4, 4)), "the PIL image has mode F"),
        ("/no/such/file.jpg", r"/no/such/file\.jpg cannot be read as an image"),
    ],
)
def test_what_could_mean_two_things_is_refused_in_one_sentence(image, words):
    with pytest.raises(PredictError, match=words) as told:
        as_rgb(image)
    assert "\n" not in str(told.value)


def test_lists_are_many():
    assert is_many([RGB])
    assert is_many((RGB,))
    assert not is_many(RGB)
    assert not is_many("a.jpg")
