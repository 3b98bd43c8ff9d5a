"""What the matched loss is told: numbers of points and what each term counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LossSettings:
    """Mask2Former's settings; the defaults are its published ones."""

    num_points: int = 12544
    oversample_ratio: float = 3.0
    importance_sample_ratio: float = 0.75
    mask_coefficient: float = 5.0
    dice_coefficient: float = 5.0
    class_coefficient: float = 2.0
    no_object_coefficient: float = 0.1
    ignore_void: bool = (
        False  # True: points on ignored pixels and padding weigh nothing, instead of "not this mask"
    )

    def __post_init__(self) -> None:
        if self.num_points < 1 or self.oversample_ratio < 1 or not 0 <= self.importance_sample_ratio <= 1:
            raise ValueError(
                "loss settings: expected num_points >= 1, oversample_ratio >= 1 and importance_sample_ratio "
                f"in 0..1; found {self}"
            )

    @property
    def point_counts(self) -> tuple[int, int, int]:
        """Candidates, how many of them are kept, and how many fresh points complete a row."""
        kept = int(self.importance_sample_ratio * self.num_points)
        return int(self.num_points * self.oversample_ratio), kept, self.num_points - kept
