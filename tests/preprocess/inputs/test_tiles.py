from itertools import pairwise

import numpy as np
import pytest

from maskshards.preprocess.inputs.tiles import tile_corners, tile_key, untiled_key
from maskshards.shards.format.record import check_key


@pytest.mark.parametrize(
    ("size", "tile", "overlap"),
    [((100, 130), 32, 0), ((100, 130), 32, 31), ((10, 130), 32, 4), ((33, 64), 32, 8)],
)
def test_equal_tiles_cover_every_pixel(size, tile, overlap):
    corners = tile_corners(*size, tile, overlap)
    seen = np.zeros(size, int)
    for top, left in corners:
        part = seen[top : top + tile, left : left + tile]
        assert part.shape == (min(tile, size[0]), min(tile, size[1]))
        part += 1
    assert seen.min() >= 1
    assert len(set(corners)) == len(corners)
    for axis in (0, 1):
        starts = sorted({corner[axis] for corner in corners})
        assert all(two - one <= tile - overlap for one, two in pairwise(starts))


def test_keys_lead_back():
    key = tile_key("a/b", (512, 1024))
    assert key == "a/b/y000512-x001024"
    assert untiled_key(key) == "a/b"
    check_key(key)
