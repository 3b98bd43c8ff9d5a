import io

import numpy as np
import pytest
from PIL import Image

from maskshards.preprocess.errors import RejectedInput
from maskshards.preprocess.inputs import png


def encode(image, **options):
    out = io.BytesIO()
    image.save(out, "PNG", **options)
    return out.getvalue()


@pytest.mark.parametrize(
    ("mode", "options", "colour", "depth", "transparent"),
    [
        ("L", {}, png.GREY, 8, False),
        ("RGB", {}, png.RGB, 8, False),
        ("P", {"bits": 8}, png.PALETTE, 8, False),
        ("P", {"bits": 4}, png.PALETTE, 4, False),
        ("1", {}, png.GREY, 1, False),
        ("I;16", {}, png.GREY, 16, False),
        ("LA", {}, png.GREY_ALPHA, 8, False),
        ("RGBA", {}, png.RGB_ALPHA, 8, False),
        ("L", {"transparency": 3}, png.GREY, 8, True),
    ],
)
def test_header_of_what_pillow_writes(mode, options, colour, depth, transparent):
    image = Image.new(mode, (7, 5))
    if mode == "P":
        image.putpalette(bytes(range(3 << options["bits"])) if options["bits"] < 7 else bytes(range(256)) * 3)
    header = png.read_header(encode(image, **options))
    assert (header.height, header.width) == (5, 7)
    assert (header.colour, header.bit_depth, header.transparent, header.animated) == (
        colour,
        depth,
        transparent,
        False,
    )


def test_animation_is_seen():
    frames = [Image.fromarray(np.full((4, 4), value, np.uint8)) for value in (0, 9)]
    assert png.read_header(encode(frames[0], save_all=True, append_images=frames[1:])).animated


def test_broken_headers_are_refused():
    good = encode(Image.new("L", (7, 5)))
    with pytest.raises(RejectedInput, match="not a PNG file"):
        png.read_header(b"\xff\xd8\xff" + good)
    with pytest.raises(RejectedInput, match="not a PNG file"):
        png.read_header(b"")
    with pytest.raises(RejectedInput, match="broken PNG header: 0x5"):
        png.read_header(good[:16] + bytes(4) + good[20:])
    with pytest.raises(RejectedInput, match="before its first pixel"):
        png.read_header(good[:40])


def test_every_flipped_bit_that_pixels_depend_on_is_seen():
    good = encode(Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8) // 9))
    png.check_whole(good)
    for place in range(8, len(good)):
        for bit in range(8):
            broken = bytearray(good)
            broken[place] ^= 1 << bit
            if place in (12, 37, len(good) - 8) and bit == 5:
                continue  # the chunk would be an optional one of another name
            with pytest.raises(RejectedInput, match=r"damaged PNG: chunk|truncated PNG: no end mark"):
                png.check_whole(bytes(broken))


def test_a_png_without_its_end_is_truncated():
    good = encode(Image.new("L", (7, 5)))
    for left_out in range(1, 30):
        with pytest.raises(RejectedInput, match="truncated PNG"):
            png.check_whole(good[:-left_out])
    png.check_whole(good + b"what somebody appended")


def test_optional_chunks_may_be_broken():
    good = encode(Image.new("L", (7, 5)), dpi=(72, 72))
    at = good.index(b"pHYs")
    png.check_whole(good[: at + 4] + b"\xff" + good[at + 5 :])
