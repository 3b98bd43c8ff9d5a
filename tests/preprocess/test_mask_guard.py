import pytest

from maskshards.preprocess.errors import BuildError
from maskshards.preprocess.inputs.labels import LabelRule
from maskshards.preprocess.mask_guard import ENOUGH, MaskGuard
from maskshards.preprocess.shard_task import ShardOutcome


def outcome(samples, class_ids, void_pixels):
    return ShardOutcome("a.tar", samples, 0, False, frozenset(class_ids), void_pixels)


def test_masks_are_noticed_in_the_first_shard_that_shows_enough():
    guard = MaskGuard(LabelRule(2), False, total=1000)
    guard.see(outcome(ENOUGH - 1, {0}, 10))
    with pytest.raises(BuildError, match=r"in 64 samples every pixel is class 0 or void .*--ignore-index"):
        guard.see(outcome(1, {0}, 0))


def test_of_few_samples_all_are_needed():
    guard = MaskGuard(LabelRule(1), False, total=3)
    guard.see(outcome(2, {0}, 10))
    with pytest.raises(BuildError, match="in 3 samples"):
        guard.see(outcome(1, {0}, 0))


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
    MaskGuard(rule, said, total=4).see(outcome(4, class_ids, void_pixels))
