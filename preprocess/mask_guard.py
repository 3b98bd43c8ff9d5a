"""Masks of 0 and 255, noticed while they are built: by the default rule their object would become void.

One such label map may be a scene without objects and with void borders. When no class but 0 has a pixel in a
whole data set, or in many samples drawn at random from it, it is a set of masks whose rule was never said.
"""

from __future__ import annotations

from maskshards.preprocess.errors import BuildError
from maskshards.preprocess.inputs.labels import MASK_MAPPING, USUAL_VOID, LabelRule
from maskshards.preprocess.shard_task import ShardOutcome

ENOUGH = 64  # samples, or all there are; shards deal them at random


class MaskGuard:
    """Looks at finished shards in turn, of `total` samples in all, unless it was said what value is void."""

    def __init__(self, rule: LabelRule, void_is_said: bool, total: int) -> None:
        self._watching = rule.may_hide_a_mask() and not void_is_said
        self._enough = min(ENOUGH, total)
        self._samples = self._void_pixels = 0
        self._class_ids: set[int] = set()

    def see(self, outcome: ShardOutcome) -> None:
        """BuildError once enough was seen, all of it void or class 0, and some of both."""
        self._samples += outcome.planned
        self._void_pixels += outcome.void_pixels
        self._class_ids |= outcome.class_ids
        if not self._watching or self._samples < self._enough:
            return
        if self._class_ids == {0} and self._void_pixels:
            raise BuildError(
                f"in {self._samples} samples every pixel is class 0 or void (value {USUAL_VOID}), so no other"
                f" class would be learnt. If the label maps are masks of 0 and {USUAL_VOID}: {MASK_MAPPING}."
                f" If {USUAL_VOID} is void indeed, say so: --ignore-index {USUAL_VOID}"
            )
