"""What a build may do to an image, and what comes of one."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from maskshards.preprocess.errors import BuildError
from maskshards.shards.format.rle import MAX_PIXELS

MAX_SOURCE_PIXELS = 1 << 29  # of an image that is to be scaled or cut; 1.6 GB of RGB in a worker
MIN_TILE_PX, MAX_TILE_PX = 16, 8192
MOST_BANDS = 512


@dataclass(frozen=True, slots=True)
class ImagePolicy:
    """What the build may do to an image; the default keeps every byte."""

    convert: bool = False  # re-encode what the table refuses
    max_short_side: int = 0  # px; re-encode larger images so that the short side has this length; 0 = never
    prove: bool = True  # decode every image once; switched off by the benchmark alone
    scale: tuple[float, float] | None = None  # (low, high): values of deep images that become 0 and 255
    bands: tuple[int, ...] = ()  # of images with more than three: those for red, green, blue, from 1
    tile: int = 0  # px; cut larger images into tiles of this side; 0 = never
    overlap: int = 0  # px that neighbouring tiles share, at least

    def check(self) -> None:
        """BuildError for settings that make no sense, in the words of the command line."""
        if self.max_short_side < 0:
            raise BuildError(
                f"--max-short-side is {self.max_short_side}; give the length in pixels, or 0 for never"
            )
        low, high = self.scale or (0.0, 1.0)
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise BuildError(f"--scale {low:g}:{high:g}: expected LOW:HIGH with LOW below HIGH")
        if self.bands and (
            len(self.bands) not in (1, 3) or not all(1 <= b <= MOST_BANDS for b in self.bands)
        ):
            raise BuildError(f"--bands {','.join(map(str, self.bands))}: name one or three bands, from 1")
        if self.tile and not MIN_TILE_PX <= self.tile <= MAX_TILE_PX:
            raise BuildError(f"--tile is {self.tile}; {MIN_TILE_PX} to {MAX_TILE_PX} pixels are possible")
        if not 0 <= self.overlap < max(1, self.tile):
            raise BuildError(
                f"--tile-overlap is {self.overlap}; expected fewer pixels than --tile, {self.tile}"
            )
        if self.tile and self.max_short_side:
            raise BuildError("--tile and --max-short-side do not go together: tiles keep the resolution")

    @property
    def most_pixels(self) -> int:
        """Of an image before anything is done to it."""
        return MAX_SOURCE_PIXELS if self.max_short_side or self.tile else MAX_PIXELS

    def to_json(self) -> dict[str, Any]:
        """As it stands in the manifest: fields that came later only where they are used."""
        early = ("convert", "max_short_side", "prove")
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
            if name in early or value
        }

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> ImagePolicy:
        """The inverse of `to_json`; fields of a later version are an error."""
        strange = set(facts) - {field.name for field in fields(cls)}
        if strange:
            raise BuildError(
                f"the image policy has {', '.join(sorted(strange))}, which this version does not know;"
                " use the maskshards that built it, or a newer one"
            )
        words = dict(facts)
        if words.get("scale"):
            words["scale"] = (float(words["scale"][0]), float(words["scale"][1]))
        return cls(**{**words, "bands": tuple(words.get("bands", ()))})


@dataclass(frozen=True, slots=True)
class Encoded:
    """An image, or one tile of an image, as it goes into the shard."""

    data: bytes
    image_format: str  # "jpg" or "png"
    height: int  # pixels, upright
    width: int  # pixels, upright
    source_height: int  # pixels, upright, before any scaling or cutting; the label map must have this size
    source_width: int
    note: str = ""  # what was done to the source's bytes; '' = nothing
    corner: tuple[int, int] | None = None  # (top, left) of a tile in its source, px; None = not a tile
