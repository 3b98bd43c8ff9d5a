import io

import numpy as np
import pytest
from PIL import Image

from maskshards.preprocess.errors import RejectedInput
from maskshards.preprocess.inputs.segments import by_size, painted_values, panoptic_values

coco_mask = pytest.importorskip("pycocotools.mask", reason="the extra 'coco' is not installed")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools' own decoder


def encode(pixels):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def test_panoptic_ids_are_looked_up_pixel_by_pixel():
    rng = np.random.default_rng(1)
    names = np.unique(rng.integers(1, 1 << 24, 30))
    ids = rng.choice([0, *names], (9, 13)).astype(np.uint32)
    segments = [{"id": int(name), "category_id": int(name) % 4} for name in names]
    data = encode(np.stack([ids, ids >> 8, ids >> 16], -1).astype(np.uint8))
    found = panoptic_values(data, segments, {0: 5, 1: 6, 2: 7}, 255, 9)
    classes = {0: 5, 1: 6, 2: 7, 3: 9}
    assert found.tolist() == [[classes[i % 4] if i else 255 for i in map(int, row)] for row in ids]


def test_panoptic_maps_that_do_not_fit():
    data = encode(np.full((2, 2, 3), 7, np.uint8))
    with pytest.raises(RejectedInput, match=r"lacks segment 460551 \(4 pixels"):
        panoptic_values(data, [], {}, 255, 255)
    with pytest.raises(RejectedInput, match="8-bit grey PNG; expected 8-bit RGB"):
        panoptic_values(encode(np.zeros((2, 2), np.uint8)), [], {}, 255, 255)


def test_polygons_are_filled_as_pycocotools_fills_them():
    rng = np.random.default_rng(2)
    for _ in range(20):
        polygons = [rng.uniform(-3, 35, 2 * int(rng.integers(3, 8))).round(2).tolist() for _ in range(2)]
        segment = {"id": 1, "category_id": 3, "segmentation": polygons}
        found = painted_values([segment], {3: 0}, 24, 32, 255)
        runs = coco_mask.merge(coco_mask.frPyObjects(polygons, 24, 32))
        assert np.array_equal(found == 0, coco_mask.decode(runs).astype(bool))


def test_run_lengths_in_both_spellings():
    mask = np.zeros((5, 6), np.uint8)
    mask[1:3, 2:5] = 1
    packed = coco_mask.encode(np.asfortranarray(mask))
    flat = mask.ravel(order="F")
    counts = np.diff([0, *(np.flatnonzero(np.diff(flat)) + 1), flat.size]).tolist()
    for shape in ({"size": [5, 6], "counts": packed["counts"].decode()}, {"size": [5, 6], "counts": counts}):
        found = painted_values([{"category_id": 1, "segmentation": shape}], {1: 4}, 5, 6, 255)
        assert np.array_equal(found == 4, mask == 1)


@pytest.mark.parametrize(
    "shape",
    [
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5, 6, 7]],
        [[1, 2, 3, 4, "5", 6]],
        [[1, 2, 3, 4, 1e9, 6]],
        [[1, 2, 3, 4, float("nan"), 6]],
        [3],
        None,
        {"size": [9, 9], "counts": [81]},
        {"size": [5, 6], "counts": [3]},
        {"size": [5, 6], "counts": "\x00"},
        {"size": 5, "counts": [30]},
    ],
)
def test_shapes_that_are_none(shape):
    with pytest.raises(RejectedInput, match="annotation 8"):
        painted_values([{"id": 8, "category_id": 1, "segmentation": shape}], {1: 0}, 5, 6, 255)


def test_other_categories_and_empty_shapes_paint_nothing():
    segments = [{"category_id": 9, "segmentation": None}, {"category_id": 1, "segmentation": []}]
    assert (painted_values(segments, {1: 0}, 5, 6, 255) == 255).all()


def test_larger_segments_come_first():
    segments = [{"area": 5}, {"bbox": [0, 0, 4, 5]}, {"area": float("nan")}, {"area": 5.0, "id": 2}]
    assert by_size(segments) == [segments[1], segments[0], segments[3], segments[2]]
