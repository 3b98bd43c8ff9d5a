from dataclasses import fields

import numpy as np
import pytest

from maskshards.preprocess.errors import BuildError
from maskshards.preprocess.inputs.labels import LabelRule
from maskshards.preprocess.mask_guard import (
    ENOUGH,
    ENOUGH_OF_EACH,
    Group,
    MaskGuard,
    kind_of,
    kinds_of_rows,
    together,
)
from maskshards.shards.format.index import SampleEntry, ShardIndex

NUMBERS = [field.name for field in fields(SampleEntry) if field.type == "int"]


def kinds(*samples):
    """Of label maps with (class ids, void pixels)."""
    return together(
        {kind_of(ids, void): Group(1, (f"{number}.png",))} for number, (ids, void) in enumerate(samples)
    )


def watching(total, *samples):
    guard = MaskGuard(LabelRule(2), False, total)
    guard.see(len(samples), kinds(*samples))
    return guard


def test_masks_are_noticed_in_the_first_shard_that_shows_enough():
    guard = watching(1000, *[({0}, 10)] * (ENOUGH - 1))
    with pytest.raises(BuildError, match=r"in 64 samples every pixel is class 0 or void .*--ignore-index"):
        guard.see(1, kinds(({0}, 0)))


def test_of_few_samples_all_are_needed():
    guard = watching(3, *[({0}, 10)] * 2)
    with pytest.raises(BuildError, match="in 3 samples"):
        guard.see(1, {})  # it was refused


@pytest.mark.parametrize(
    ("rule", "said", "class_ids", "void_pixels"),
    [
        (LabelRule(2), True, {0}, 10),  # the user said that 255 is void
        (LabelRule(2, None), False, {0}, 10),
        (LabelRule(2, mapping=((0, 0), (255, None))), False, {0}, 10),
        (LabelRule(2), False, {0, 1}, 10),
        (LabelRule(2), False, {0}, 0),  # a set of empty scenes
        (LabelRule(2), False, set(), 10),  # nothing labelled: odd, and told at the end
    ],
)
def test_other_sets_pass(rule, said, class_ids, void_pixels):
    guard = MaskGuard(rule, said, total=4)
    guard.see(4, kinds(*[(class_ids, void_pixels)] * 4))
    guard.finish()


def test_masks_of_two_kinds_are_told_with_files_of_each_once_there_are_many_or_all_was_seen():
    many = [({0}, 10)] * ENOUGH_OF_EACH + [({0, 1}, 0)] * (ENOUGH_OF_EACH - 1)
    guard = watching(1000, *many)
    with pytest.raises(BuildError, match=r"32 label maps .*and in none of the 32 that hold another class"):
        guard.see(1, kinds(({1}, 0)))
    few = watching(3, ({0}, 10), ({0, 1}, 0), ({0, 1}, 0))
    with pytest.raises(BuildError) as caught:
        few.finish()
    told = str(caught.value)
    assert "in 1 label maps that hold class 0 and nothing else (0.png)" in told
    assert "the 2 that hold another class (1.png, 2.png)" in told
    assert """--mapping '{"0": 0, "1": 1, "255": 1}' reads both. If 255 is void indeed""" in told


@pytest.mark.parametrize(
    "samples",
    [
        [({0}, 10), ({0, 1}, 0), ({0, 1}, 5)],  # void beside objects: it is void
        [({0}, 10), ({1}, 5), ({0}, 0)],
        [(set(), 10), ({0, 1}, 0)],  # an image without any label
        [({0, 1}, 0), ({0}, 0)],
    ],
)
def test_void_as_people_draw_it_is_no_second_kind_of_mask(samples):
    watching(len(samples), *samples).finish()


def test_the_index_tells_the_same_kinds_as_one_sample_after_another():
    rng = np.random.default_rng(5)
    entries = []
    for number in range(60):
        ids = sorted(rng.choice(4, rng.integers(0, 4), replace=False).tolist())
        areas = [5] * (len(ids) - 1) + [int(rng.choice([5, 20 - 5 * (len(ids) - 1)]))] * bool(ids)
        numbers = dict.fromkeys(NUMBERS, 0) | {"height": 4, "width": 5}
        entries.append(SampleEntry(f"k{number}", "png", class_ids=tuple(ids), areas=tuple(areas), **numbers))
    slow = together({kind_of(e.class_ids, 20 - sum(e.areas)): Group(1, (e.key,))} for e in entries)
    assert kinds_of_rows(ShardIndex.of_entries(entries)) == slow
    assert len(slow) >= 6
