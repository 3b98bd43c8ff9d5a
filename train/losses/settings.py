"""What the matched loss is told: numbers of points and what each term counts."""

from __future__ import annotations

from dataclasses import dataclass

from maskshards.train.keys import check_section, key

COSTS_FROM = MASKS, FEATURES = "masks", "features"


@dataclass
class LossSettings:
    """`m2f_train` in the configuration; the defaults are Mask2Former's published ones."""

    num_points: int = key(12544, "points at which a mask is compared", at_least=1)
    oversample_ratio: float = key(3.0, "candidates for uncertain points, per point", at_least=1)
    importance_sample_ratio: float = key(0.75, "share of uncertain points", at_least=0, at_most=1)
    mask_coefficient: float = key(5.0, "weight of the masks' cross entropy", at_least=0)
    dice_coefficient: float = key(5.0, "weight of the masks' dice loss", at_least=0)
    class_coefficient: float = key(2.0, "weight of the classes' cross entropy", at_least=0)
    no_object_coefficient: float = key(0.1, "weight of queries without a mask in it", at_least=0)
    costs_from: str = key(
        MASKS,
        "what matching costs are sampled from: masks of all queries, or mask features, which then meet the "
        "queries at the points only; equal but for rounding",
        one_of=COSTS_FROM,
    )
    ignore_void: bool = key(
        False, 'True: unlabelled and padded points weigh nothing, instead of "not this mask"'
    )

    def __post_init__(self) -> None:
        check_section(self, "m2f_train.")

    @property
    def point_counts(self) -> tuple[int, int, int]:
        """Candidates, how many of them are kept, and how many fresh points complete a row."""
        kept = int(self.importance_sample_ratio * self.num_points)
        return int(self.num_points * self.oversample_ratio), kept, self.num_points - kept
