"""Arrays of one meaning are read, arrays of two meanings are refused in a sentence that settles it."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from maskshards.train.prediction.image_arrays import as_rgb, each_as_rgb, is_many
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
    "16 bits of another machine": (RGB.astype(np.uint16) * 257).astype(">u2"),
    "PIL": Image.fromarray(RGB),
    "PIL with alpha": Image.fromarray(RGB).convert("RGBA"),
    "tensor": torch.from_numpy(RGB),
    "tensor, channels first": torch.from_numpy(RGB).permute(2, 0, 1),
    "another library's array": SimpleNamespace(__array__=lambda: RGB),
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
        (RGB > 3, r"bool is not read; pass uint8 with white at 255: image\.astype\('uint8'\) \* 255"),
        (np.ma.masked_equal(RGB, 0), "a masked array is not read"),
        (RGB.astype(object), "an array of object is no image"),
        (np.array([["a"]]), "an array of <U1 is no image"),
        (Image.new("RGB", (0, 5)), "0x5 px: it has no pixels"),
        (io.BytesIO(b""), "an open file is not read"),
        (torch.empty(4, 4, 3, dtype=torch.uint8, device="meta"), "a tensor on meta cannot be read"),
        ((one for one in [RGB]), r"generator is no image and no list; pass list\(images\)"),
        (b"\xff\xd8", "encoded bytes are not read; pass PIL"),
        ({"image": RGB}, "dict is no image here"),
        ("https://host/a.jpg", "is a URL, and nothing is fetched"),
        ("a\0.jpg", "is no path"),
        ("", "'' is no path"),
        (RGB.astype(np.uint16), "16-bit values up to 255 only"),
        (RGB.astype(np.uint16) * 16, r"16-bit values up to 40\d\d only"),
        (RGB[None], r"\(1, 6, 9, 3\) is a batch: pass list\(batch\)"),
        (RGB[:0], r"\(0, 9, 3\) is no image; expected"),
        (RGB[0, 0], r"\(3,\) is no image"),
        (RGB[:, :, :2], r"\(6, 9, 2\) is no image"),
        (7, "int is no image here; expected a path, a PIL image"),
        (None, "NoneType is no image"),
        (Image.new("F", (4, 4)), "the PIL image has mode F"),
        ("/no/such/file.jpg", r"/no/such/file\.jpg does not exist"),
    ],
)
def test_what_could_mean_two_things_is_refused_in_one_sentence(image, words):
    with pytest.raises(PredictError, match=words) as told:
        as_rgb(image)
    assert "\n" not in str(told.value)


def test_what_is_wrong_in_a_list_is_told_with_its_place():
    assert len(list(each_as_rgb((RGB, RGB)))) == 2
    with pytest.raises(PredictError, match=r"images\[1\]: nope\.png does not exist"):
        list(each_as_rgb([RGB, "nope.png"]))
    with pytest.raises(PredictError, match=r"an array of object is no image \(images of several sizes"):
        as_rgb(np.array([RGB, None], dtype=object))


def test_lists_are_many():
    assert is_many([RGB])
    assert is_many((RGB,))
    assert not is_many(RGB)
    assert not is_many("a.jpg")


MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV", "LAB")


@pytest.mark.parametrize("mode", MODES)
def test_pictures_of_every_mode_but_numbers_are_read(mode):
    try:
        picture = Image.fromarray(RGB).convert(mode)
    except ValueError:  # what Pillow makes from files only
        picture = Image.new(mode, (9, 6))
    assert as_rgb(picture).shape == RGB.shape


def test_one_bit_is_black_or_white():
    bits = Image.fromarray(RGB[..., 0] > 99)
    assert np.array_equal(as_rgb(bits)[..., 0], (RGB[..., 0] > 99) * np.uint8(255))


def test_a_lazy_picture_whose_file_is_gone_or_cut_short(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(RGB.repeat(40, 0).repeat(40, 1)).save(path)
    whole = path.read_bytes()
    closed = Image.open(path)
    closed.close()
    path.write_bytes(whole[: len(whole) // 2])
    with Image.open(path) as cut:
        for picture in (closed, cut):
            with pytest.raises(PredictError, match="the PIL image of mode RGB cannot be read"):
                as_rgb(picture)


def test_paths_in_every_form_and_turned_by_their_exif(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    for name in (tmp_path / "a.png", str(tmp_path / "a.png"), "~/a.png"):
        assert np.array_equal(as_rgb(name), np.rot90(RGB, -1))
