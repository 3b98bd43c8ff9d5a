"""Runs to pixels against numpy's repeat, window counts against counting pixels."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskshards.shards.augment.rasterize import (
    IGNORED,
    image_of,
    label_map_of,
    paint,
    pixel_offsets,
    window_counts,
)
from maskshards.shards.augment.resize import nearest_sources
from maskshards.shards.augment.windows import SourceTable, Windows, plan_windows, source_arrays


@given(st.lists(st.tuples(st.integers(1, 400), st.integers(0, 255)), min_size=1, max_size=60))
@settings(deadline=None, max_examples=200)
def test_paint_repeats_each_value_over_its_run(runs):
    lengths, values = (np.array(column) for column in zip(*runs, strict=True))
    ends = torch.from_numpy(np.cumsum(lengths).astype(np.int32))
    painted = paint(ends, torch.from_numpy(values.astype(np.uint8)), int(ends[-1]))
    np.testing.assert_array_equal(painted.numpy(), np.repeat(values, lengths))


def test_paint_leaves_its_input_alone():
    values = torch.tensor([3, 250, 7], dtype=torch.uint8)
    paint(torch.tensor([2, 3, 9], dtype=torch.int32), values, 9)
    assert values.tolist() == [3, 250, 7]


def test_images_and_label_maps_come_back_out_of_the_batch(make_batch, random_scenes):
    images, class_maps = random_scenes(5, 1, 50, 0)
    batch = make_batch(images, class_maps)
    assert pixel_offsets(batch)[-1] * 3 == batch.pixels.numel()
    for i, (image, class_map) in enumerate(zip(images, class_maps, strict=True)):
        np.testing.assert_array_equal(image_of(batch, i).numpy(), image)
        labels = label_map_of(batch, i)
        assert labels.dtype == torch.int64
        np.testing.assert_array_equal(labels.numpy(), class_map)


def test_class_id_255_is_a_class_like_any_other(make_batch):
    batch = make_batch([np.zeros((1, 2, 3), np.uint8)], [np.array([[255, 65535]])])
    assert label_map_of(batch, 0).tolist() == [[255, IGNORED]]


def windows_of(class_maps, resized, crop_px, down, right):
    """The device's view of `down`, `right` (B, C) windows, without going through crop()."""
    heights, widths = ([m.shape[axis] for m in class_maps] for axis in (0, 1))
    plan = plan_windows(resized, crop_px, down, right)
    areas = np.multiply(heights, widths)
    arrays = [np.cumsum(areas) - areas, widths, 0, 0, 0, *np.array(plan.inner).T, np.zeros(len(widths))]
    arrays += [plan.tops, plan.lefts]
    tables = []
    for axis, sizes in enumerate((heights, widths)):
        fields = source_arrays(sizes, [size[axis] for size in resized])
        tables.append(SourceTable(*map(torch.from_numpy, fields)))
    return plan, Windows(*(torch.from_numpy(np.asarray(array, np.int32).copy()) for array in arrays), *tables)


@pytest.mark.parametrize("seed", range(6))
def test_window_counts_equal_counted_pixels(make_batch, random_scenes, seed):
    random = np.random.default_rng(seed)
    images, class_maps = random_scenes(4, 1, 60, seed)
    batch = make_batch(images, class_maps)
    resized = [tuple(random.integers(1, 90, 2).tolist()) for _ in images]
    down, right = random.random((2, 4, 3))
    plan, windows = windows_of(class_maps, resized, (20, 35), down, right)
    windows = replace(
        windows,
        run_starts=torch.tensor(batch.run_offsets[:-1]),
        run_counts=torch.tensor(np.diff(batch.run_offsets)),
    )
    counts = window_counts(batch.run_ends, batch.run_owners, windows, 7)
    assert counts.shape == (4, 3, 7)
    for i, class_map in enumerate(class_maps):
        rows, columns = (nearest_sources(class_map.shape[axis], resized[i][axis]) for axis in (0, 1))
        shown = class_map[rows][:, columns]
        for c in range(3):
            top, left = plan.tops[i, c], plan.lefts[i, c]
            window = shown[top : top + 20, left : left + 35]
            expected = [(window == 65535).sum(), *((window == label).sum() for label in batch.labels[i])]
            expected += [0] * (7 - len(expected))
            np.testing.assert_array_equal(counts[i, c].numpy(), expected)
