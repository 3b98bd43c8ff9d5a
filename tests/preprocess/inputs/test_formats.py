import io

import numpy as np
import pytest
from PIL import Image

from maskshards.preprocess.inputs.formats import CONVERTIBLE, format_name, readable_formats


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("GIF", "a GIF file"),
        ("BMP", "a BMP file"),
        ("TIFF", "a TIFF file"),
        ("WEBP", "a WebP file"),
        ("AVIF", "an AVIF file"),
        ("JPEG2000", "a JPEG 2000 file"),
        ("PPM", "a PPM file"),
        ("EPS", "a PostScript file"),
        ("PDF", "a PDF file"),
    ],
)
def test_names(kind, name):
    out = io.BytesIO()
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(out, kind)
    assert format_name(out.getvalue()) == name


def test_no_listed_format_starts_a_program():
    assert not {"EPS", "WMF", "GBR", "IPTC", "MPEG", "HDF5", "GRIB", "BUFR"} & set(CONVERTIBLE)
    assert readable_formats(b"II*\0") == CONVERTIBLE


def test_brands_of_boxes():
    assert format_name(b"\0\0\0\x20ftypheic") == "a HEIC file"
    assert format_name(b"\0\0\0\x20ftypisom") == "a file of brand b'isom'"
    assert format_name(b"\xf0\x9f") == "an unknown format (it starts with b'\\xf0\\x9f')"
