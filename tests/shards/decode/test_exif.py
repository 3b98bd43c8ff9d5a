import numpy as np
import pytest
from PIL import Image, ImageOps

from maskshards.shards.decode.exif import ORIENTATION, has_exif_segment, orientation, turned


@pytest.mark.parametrize("turn", range(1, 9))
def test_turning_is_pillows_own(turn):
    image = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4))
    tags = image.getexif()
    tags[ORIENTATION] = turn
    expected = np.asarray(ImageOps.exif_transpose(image))
    assert orientation(image) == turn
    assert (np.asarray(turned(image, turn)) == expected).all()


@pytest.mark.parametrize("value", [0, 9, -1, "6", b"\6", (6, 6), 6.0, None])
def test_anything_else_is_upright(value):
    class Odd:
        def getexif(self):
            return {ORIENTATION: value}

    assert orientation(Odd()) == 1


def test_a_parser_that_fails_means_upright():
    class Broken:
        def getexif(self):
            raise TypeError("odd tag")

    assert orientation(Broken()) == 1


def test_exif_segments_are_looked_for_before_the_scan():
    assert has_exif_segment(b"\xff\xd8\xff\xe1\x00\x10Exif\0\0rest")
    assert not has_exif_segment(b"\xff\xd8\xff\xe0\x00\x04JF\xff\xda\x00\x04")
    assert has_exif_segment(b"\xff\xd8\x00\x00 an order that we do not know")
