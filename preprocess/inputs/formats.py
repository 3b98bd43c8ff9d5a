"""Which file formats are read, told by their first bytes; a closed list, so that no program is ever started.

Pillow would hand PostScript to Ghostscript and offer forty formats more, each with a parser of its own;
what is not listed here is refused by name.
"""

from __future__ import annotations

from maskshards.preprocess.errors import RejectedInput

CONVERTIBLE = (
    "JPEG",
    "PNG",
    "WEBP",
    "BMP",
    "TIFF",
    "GIF",
    "JPEG2000",
    "AVIF",
    "PPM",
)  # Pillow's names
TIFF_STARTS = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
JPEG2000_STARTS = (b"\x00\x00\x00\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")
STARTS = (
    (b"GIF8", "a GIF file"),
    (b"BM", "a BMP file"),
    *((start, "a TIFF file") for start in TIFF_STARTS),
    *((start, "a JPEG 2000 file") for start in JPEG2000_STARTS),
    (b"\x00\x00\x00\x0cJXL ", "a JPEG XL file"),
    (b"\xff\x0a", "a JPEG XL file"),
    (b"P5", "a PGM file"),
    (b"P6", "a PPM file"),
    (b"%!PS", "a PostScript file"),
    (b"\xc5\xd0\xd3\xc6", "a PostScript file"),
    (b"%PDF", "a PDF file"),
    (b"8BPS", "a Photoshop file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"version https://git-lfs", "a pointer of Git LFS (run git lfs pull)"),
    (b"<svg", "an SVG file"),
    (b"<!doctype html", "a web page (a failed download)"),
    (b"<html", "a web page (a failed download)"),
    (b"<?xml", "an XML file"),
)
NO_IMAGES = ("a pointer of", "a web page", "an XML file", "a zip archive", "a gzip file")  # how names begin
BRANDS = {
    b"avif": "an AVIF file",
    b"avis": "an AVIF sequence",
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"), "a HEIC file"),
}


def format_name(data: bytes) -> str:
    """What a file without a JPEG or PNG signature seems to be, for the message."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "a WebP file"
    if data[4:8] == b"ftyp":
        return BRANDS.get(data[8:12], f"a file of brand {data[8:12]!r}")
    if data[128:132] == b"DICM":
        return "a DICOM file"
    head = data[:32]
    for start, name in STARTS:
        if head.startswith(start) or (head.lower().startswith(start.lower()) and start[:1] == b"<"):
            return name
    return f"an unknown format (it starts with {data[:8]!r})"


def may_be_an_image(data: bytes) -> bool:
    """Whether re-encoding could help; a failed download is no image of any format."""
    return not format_name(data).startswith(NO_IMAGES)


def readable_formats(data: bytes) -> tuple[str, ...]:
    """Pillow's names of the formats that may be tried on `data`. RejectedInput where HEIC needs its extra."""
    if format_name(data) != "a HEIC file":
        return CONVERTIBLE
    try:
        from pillow_heif import register_heif_opener
    except ImportError as error:
        raise RejectedInput(
            "a HEIC file; reading it needs the extra: pip install 'maskshards[heic]'"
        ) from error
    register_heif_opener()
    return ("HEIF",)
