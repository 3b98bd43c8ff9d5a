import ast
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskshards.preprocess.errors import RejectedInput
from maskshards.preprocess.inputs.formats import CONVERTIBLE, format_name, may_be_an_image, readable_formats
from maskshards.preprocess.inputs.image_policy import ImagePolicy
from maskshards.preprocess.inputs.images import encode_images


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


def test_every_image_in_the_project_is_opened_as_one_of_named_formats():
    """Otherwise a PostScript file named photo.jpg starts Ghostscript."""
    root = Path(__file__).resolve().parents[3]
    found = [
        f"{path.relative_to(root)}:{node.lineno}"
        for package in ("preprocess", "shards", "train")
        for path in (root / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).endswith("Image.open")
        and "formats" not in {keyword.arg for keyword in node.keywords}
    ]
    assert found == []


@pytest.mark.parametrize("data", [b"version https://git-lfs.github.com/spec/v1\n", b"<HTML>404", b"PK\3\4"])
def test_what_no_re_encoding_makes_an_image(data):
    assert not may_be_an_image(data)
    with pytest.raises(RejectedInput, match="instead of JPEG or PNG; get the image itself"):
        encode_images(data, ImagePolicy())
    assert may_be_an_image(b"BM")
