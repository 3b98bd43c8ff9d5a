"""COCO's run lengths: pycocotools must write the same bytes and read the same masks."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from maskshards.shards.errors import RunsError
from maskshards.shards.format.coco import from_coco, to_coco
from maskshards.shards.format.rle import IGNORE, encode_label_map

oracle = pytest.importorskip("pycocotools.mask", reason="pycocotools is not installed")

# pycocotools' decode wraps its memory in a class from before numpy 2; its masks are right all the same.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

class_maps = hnp.arrays(
    np.uint16,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=24),
    elements=st.sampled_from([0, 3, 149, IGNORE]),
)


def by_oracle(class_map, labels):
    return [oracle.encode(np.asfortranarray(class_map == label).astype(np.uint8)) for label in labels]


def check_both_ways(class_map):
    runs = encode_label_map(class_map)
    labels = runs.labels.tolist()
    masks = to_coco(runs, *class_map.shape)
    assert masks == by_oracle(class_map, labels)
    assert from_coco(masks, labels, *class_map.shape) == runs
    for mask, label in zip(masks, labels, strict=True):
        assert np.array_equal(oracle.decode(mask), class_map == label)


@given(class_maps)
def test_every_mask_has_the_bytes_of_pycocotools(class_map):
    check_both_ways(class_map)


@pytest.mark.parametrize("shape", [(1, 1), (1, 70000), (70000, 1), (400, 500)])
def test_counts_of_many_characters(shape):
    class_map = np.zeros(shape, np.uint16)
    class_map[-1, -1] = 1
    check_both_ways(class_map)


def test_a_class_in_several_masks_is_their_union():
    left, right = np.zeros((2, 4, 6), np.uint8)
    left[:, :2], right[:, 4:] = 1, 1
    masks = [oracle.encode(np.asfortranarray(mask)) for mask in (left, right)]
    expected = np.where(left | right, 5, IGNORE).astype(np.uint16)
    assert from_coco(masks, [5, 5], 4, 6) == encode_label_map(expected)


def test_counts_may_be_text_or_plain_numbers():
    plain = {"size": [2, 2], "counts": [1, 2, 1]}
    text = oracle.encode(np.array([[0, 1], [1, 0]], np.uint8, order="F"))
    text["counts"] = text["counts"].decode()
    assert from_coco([plain], [0], 2, 2) == from_coco([text], [0], 2, 2)


def test_an_overlap_names_both_classes():
    masks = by_oracle(np.zeros((3, 3), np.uint16), [0]) * 2
    with pytest.raises(RunsError, match="classes 4 and 9 overlap"):
        from_coco(masks, [4, 9], 3, 3)


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        ({"size": [3, 2], "counts": [6]}, "has size"),
        ({"size": [2, 3], "counts": [5]}, "do not add up"),
        ({"size": [2, 3], "counts": b""}, "do not add up"),
        ({"size": [2, 3], "counts": [-1, 7]}, "bytes, str or a list"),
        ({"size": [2, 3], "counts": [True, 5]}, "bytes, str or a list"),
        ({"size": [2, 3], "counts": 6}, "bytes, str or a list"),
        ({"size": [2, 3], "counts": b"\x00"}, "does not belong"),
        ({"size": [2, 3], "counts": b"o"}, "does not belong"),
        ({"size": [2, 3], "counts": b"ooooooooo0"}, "no image could need"),
        ({"size": [2, 3], "counts": b"oooooo?oooooo?"}, "do not add up"),
    ],
)
def test_counts_that_no_mask_has_are_refused(mask, says):
    with pytest.raises(RunsError, match=says):
        from_coco([mask], [0], 2, 3)


def test_lists_and_sizes_that_do_not_fit_are_refused():
    with pytest.raises(RunsError, match="1 masks but 2 class ids"):
        from_coco([{"size": [1, 1], "counts": [1]}], [0, 1], 1, 1)
    with pytest.raises(RunsError, match="class id 65535"):
        from_coco([{"size": [1, 1], "counts": [1]}], [IGNORE], 1, 1)
    with pytest.raises(RunsError, match="at most"):
        from_coco([], [], 1 << 20, 1 << 20)


@given(st.binary(max_size=60))
def test_noise_is_refused_or_is_what_pycocotools_reads(text):
    try:
        runs = from_coco([{"size": [6, 7], "counts": text}], [0], 6, 7)
    except RunsError:
        return
    mask = oracle.decode({"size": [6, 7], "counts": text})
    assert runs == encode_label_map(np.where(mask, 0, IGNORE).astype(np.uint16))


def test_real_label_maps_have_the_bytes_of_pycocotools():
    root = os.environ.get("MASKSHARDS_TEST_DATA")
    if not root:
        pytest.skip("MASKSHARDS_TEST_DATA is not set")
    for path in sorted(Path(root, "ade20k/annotations").rglob("*.png")):
        with Image.open(path) as picture:
            check_both_ways(np.asarray(picture).astype(np.uint16) - np.uint16(1))
