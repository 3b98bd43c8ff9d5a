"""Damaged and odd image and label files by the thousand, from a seed: each is refused by name or becomes a
sample that decodes to what it claims, and none ends the build.
"""

import io
import struct
import zlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pytest
from PIL import Image

from maskshards.preprocess.destinations.journal import read_journal
from maskshards.preprocess.destinations.local import LocalDestination
from maskshards.preprocess.inputs.image_policy import ImagePolicy
from maskshards.preprocess.inputs.labels import LabelRule
from maskshards.preprocess.shard_task import ShardTask, build_shard
from maskshards.preprocess.sources.source import Listing, RawSample, Source, SourceItem
from maskshards.shards.decode.jpeg import decode_image
from maskshards.shards.format.record import from_members
from maskshards.shards.format.rle import IGNORE, decode_label_map
from maskshards.shards.format.tar import read_members

HEIGHT, WIDTH = 36, 52
POLICIES = {
    "keep": ImagePolicy(),
    "convert": ImagePolicy(convert=True),
    "scale": ImagePolicy(convert=True, scale=(0, 4095), max_short_side=20),
    "tiles": ImagePolicy(convert=True, scale=(0, 1), bands=(3, 2, 1), tile=24, overlap=3),
}
PER_SHARD = 125
RULE = LabelRule(3, reduce_zero_label=True)


def encode(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@lru_cache
def bases():
    """Whole files: every kind that a data set may hold, and some that no decoder likes."""
    rng = np.random.default_rng(2)
    rgb = rng.integers(0, 256, (HEIGHT // 4, WIDTH // 4, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    picture, grey = Image.fromarray(rgb), Image.fromarray(rgb[..., 0])
    deep = Image.fromarray(rgb[..., 0].astype(np.uint16) * 16)
    turned = Image.Exif()
    turned[0x0112] = 6
    found = {
        "jpeg": encode(picture, "JPEG"),
        "progressive": encode(picture, "JPEG", progressive=True),
        "grey jpeg": encode(grey, "JPEG"),
        "cmyk jpeg": encode(picture.convert("CMYK"), "JPEG"),
        "turned jpeg": encode(picture, "JPEG", exif=turned),
        "mpo": encode(picture, "MPO", save_all=True, append_images=[picture]),
        "png": encode(picture, "PNG"),
        "grey png": encode(grey, "PNG"),
        "palette png": encode(picture.quantize(16), "PNG"),
        "alpha png": encode(picture.convert("RGBA"), "PNG"),
        "16-bit png": encode(deep, "PNG"),
        "text png": png_with(encode(picture, "PNG"), b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 20))),
        "tiff": encode(picture, "TIFF"),
        "float tiff": encode(Image.fromarray(rgb[..., 0].astype(np.float32) / 255), "TIFF"),
        "16-bit tiff": encode(deep, "TIFF"),
        "webp": encode(picture, "WEBP"),
        "lossless webp": encode(picture.convert("RGBA"), "WEBP", lossless=True),
        "gif": encode(picture.quantize(64), "GIF"),
        "bmp": encode(picture, "BMP"),
        "jp2": encode(picture, "JPEG2000"),
        "avif": encode(picture, "AVIF", speed=10),
    }
    for compression in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg"):
        found[compression] = encode(picture, "TIFF", compression=compression)
    return found


def png_with(data, name, body):
    chunk = struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return data[:33] + chunk + data[33:]


def damaged(data, rng):
    """One of the ways in which files break, or a way in which they are made to lie."""
    data = bytearray(data)
    kind = rng.integers(8)
    at = int(rng.integers(len(data)))
    if kind == 0:
        return bytes(data)  # whole
    if kind == 1:
        return bytes(data[:at])
    if kind == 2:
        return bytes(data[:at]) + rng.bytes(int(rng.integers(1, 64))) + bytes(data[at:])
    if kind == 3:
        return bytes(data[:at] + data[at + int(rng.integers(1, 64)) :])
    if kind == 4:  # a number of a header becomes huge
        at = int(rng.integers(min(len(data), 120)))
        data[at : at + 4] = struct.pack(">I", int(rng.integers(1 << 32)))
        return bytes(data)
    if kind == 5:  # a sector of nothing
        data[at : at + 512] = bytes(len(data[at : at + 512]))
        return bytes(data)
    for place in rng.integers(0, len(data) if kind == 6 else min(len(data), 400), int(rng.integers(1, 5))):
        data[place] ^= 1 << int(rng.integers(8))
    return bytes(data)


def png_label(rng):
    values = rng.integers(0, 4, (HEIGHT // 6, WIDTH // 4), dtype=np.uint8).repeat(6, 0).repeat(4, 1)
    return encode(Image.fromarray(values), "PNG")


@dataclass(frozen=True)
class Damaged(Source):
    """Sample N of seed S is always the same."""

    seed: int
    classes: tuple[str, ...] = ("a", "b", "c")
    label_rule: LabelRule = RULE
    dataset: str = "damaged"
    kind: str = "damaged"

    def splits(self):
        return ("training",)

    def listing(self, split):
        return Listing((), ())

    def item(self, split, name):
        return SourceItem(name, f"images/{name}", f"labels/{name}", split)

    def read(self, item):
        image, label, rng = self._whole_label(item.key)
        return RawSample(image, damaged(label, rng) if rng.random() < 0.15 else label)

    def class_map(self, key):
        """(H, W) uint16, as Pillow reads the label before any damage."""
        with Image.open(io.BytesIO(self._whole_label(key)[1])) as image:
            return self.label_rule.apply(np.asarray(image))

    def _whole_label(self, key):
        rng = np.random.default_rng([self.seed, int(key)])
        names = sorted(bases())
        image = damaged(bases()[names[int(rng.integers(len(names)))]], rng)
        return image, png_label(rng), rng

    def stamp(self, item):
        return ""

    def settings(self):
        return {"kind": self.kind}


def build_and_check(folder, seed, policy, first, count):
    """The number of samples and of refused inputs of one shard, every sample of it decoded."""
    names = tuple(str(number) for number in range(first, first + count))
    place = LocalDestination(folder)
    source = Damaged(seed)
    task = ShardTask(source, place, "training", policy, "fuzz", f"training-{first:05d}.tar", names)
    outcome = build_shard(task)
    journal = read_journal(place, task.shard_name)
    assert outcome.planned == count
    for reject in journal.rejects:
        assert reject.name.startswith("images/")
        assert reject.reason
        assert "<_io" not in reject.reason
    kept = {entry.key.partition("/")[0] for entry in journal.entries}
    refused = {reject.name.removeprefix("images/") for reject in journal.rejects}
    assert kept | refused == set(names)
    assert not kept & refused
    with open(folder / task.shard_name, "rb") as file:
        for entry in journal.entries:
            record = from_members(read_members(file, entry))
            pixels = np.empty((record.height, record.width, 3), np.uint8)
            decode_image(record.image, record.image_format, pixels)
            labels = decode_label_map(record.runs, record.height, record.width)
            assert set(np.unique(labels)) <= {0, 1, 2, IGNORE}
            if policy in (POLICIES["keep"], POLICIES["convert"]):
                assert np.array_equal(labels, source.class_map(entry.key))
    return len(kept), len(refused)


@pytest.mark.parametrize("name", POLICIES)
def test_some_hundred_damaged_files(tmp_path, name):
    kept, refused = build_and_check(tmp_path, 1, POLICIES[name], 0, PER_SHARD)
    assert kept > 8
    assert refused > 10


@pytest.mark.slow
@pytest.mark.parametrize("name", POLICIES)
def test_ten_thousand_damaged_files(tmp_path, name):
    firsts = range(0, 10_000 // len(POLICIES), PER_SHARD)
    counted = 0
    for first in firsts:
        counted += sum(build_and_check(tmp_path, 7, POLICIES[name], first, PER_SHARD))
        (tmp_path / f"training-{first:05d}.tar").unlink()
    assert counted == len(firsts) * PER_SHARD


@pytest.mark.parametrize("base", sorted(bases()))
def test_whole_files_become_the_picture(base, tmp_path):
    """Against what Pillow alone decodes; of those that need a scale, against that scale."""
    from maskshards.preprocess.inputs.images import encode_images

    scale = (0, 1) if base == "float tiff" else (0, 4095) if "16-bit" in base else None
    (found,) = encode_images(bases()[base], ImagePolicy(convert=True, scale=scale))
    with Image.open(io.BytesIO(bases()[base])) as image:
        values = np.asarray(image) if scale else np.asarray(image.convert("RGB"))
    expected = np.rint(values.astype(float) * (255 / scale[1]))[..., None] if scale else values
    pixels = np.empty((found.height, found.width, 3), np.uint8)
    decode_image(found.data, found.image_format, pixels)
    if base == "turned jpeg":
        expected = np.rot90(expected, -1)
    assert abs(pixels.astype(float) - expected).mean() < 6
