"""Where the tiles of a large image lie: equal squares that overlap and together cover every pixel."""

from __future__ import annotations

import re


def tile_corners(height: int, width: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """(top, left) in px of every tile, row by row.

    A tile is min(tile, height) x min(tile, width) px. The last one of a row or column ends at the image's
    edge and overlaps its neighbour by more; no tile is smaller than the others.
    """
    return [(top, left) for top in _starts(height, tile, overlap) for left in _starts(width, tile, overlap)]


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    if length <= tile:
        return [0]
    return [*range(0, length - tile, tile - overlap), length - tile]


def tile_key(key: str, corner: tuple[int, int]) -> str:
    """The key of a tile of the sample `key`."""
    return f"{key}/y{corner[0]:06d}-x{corner[1]:06d}"


def is_tile_key(key: str) -> bool:
    """Whether `tile_key` may have made it."""
    return re.fullmatch(r".+/y\d{6}-x\d{6}", key) is not None


def untiled_key(key: str) -> str:
    """The key of the sample that a tile was cut from; the inverse of `tile_key`."""
    return key.rpartition("/")[0]
