"""What a head is: all that the rest of the code asks of one, in one place.

A `Head` builds the trained part (a `Decoder`) and its loss (a `HeadLoss`); nothing outside `heads` asks which
head it has. A new head is a module with these three, its rules in `rules.py` and a line in `registry.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from maskshards.shards.batch import CropBatch
from maskshards.train.config.schema import TrainConfig
from maskshards.train.losses.matched_loss import MatchedLoss
from maskshards.train.model.heads.rules import HeadRules, HeadSettings

Reduce = Callable[[Tensor], Tensor]  # sums a small tensor over all ranks


class Decoder(nn.Module, ABC):
    """All that is trained. Its parameters lie in `segmentation_model`, under the published key names."""

    rules: ClassVar[HeadRules]
    segmentation_model: nn.ModuleList  # what reads the image (0), and the head (1)

    @abstractmethod
    def forward(self, images: Tensor, features: tuple[Tensor, ...], drops: Tensor | None = None) -> Any:
        """The head's answer to images (B, 3, H, W) and patch maps (B, D, h, w) each; drops as drawn."""

    @abstractmethod
    def draw_drops(self, positions: Sequence[int], seed: int) -> Tensor | None:
        """(B, n) float32 factors of what is dropped at random in training; None in eval mode."""

    @property
    def mask_counts(self) -> tuple[int, int]:
        """How many predictions it makes, and of how many masks each. TypeError for a head without masks."""
        raise TypeError(f"a {self.rules.name} head predicts no masks")

    @abstractmethod
    def scores(self, answer: Any, size: tuple[int, int]) -> Tensor:
        """Semantic scores (B, num_classes, *size) float32 from what `forward` answered."""

    @abstractmethod
    def phases(self) -> dict[str, nn.Module]:
        """The modules whose forward ends a phase of a timed step, by its name, in their order."""

    @abstractmethod
    def pieces(self) -> list[nn.Module]:
        """The modules that torch.compile may take, one graph each."""


@dataclass(frozen=True, slots=True)
class HeadLosses:
    """One micro-step's loss."""

    total: Tensor  # scalar, carries the graph
    parts: dict[str, Tensor]  # detached scalars by name, for the log
    flag_on_host: float | None = None  # the `flag` that was handed in, as a number


class HeadLoss(ABC):
    """Compares a head's answer with crops."""

    brings_flag: ClassVar[bool]  # whether a value of the device can travel to the host with it, at no cost
    matched: MatchedLoss | None = None  # the same in three parts, for a step that is recorded

    @abstractmethod
    def __call__(
        self,
        answer: Any,
        crops: CropBatch,
        *,
        seed: int,
        reduce: Reduce | None,
        flag: Tensor | None = None,
        meanwhile: Callable[[], None] | None = None,
    ) -> HeadLosses:
        """The loss, such that the mean over ranks is what one process with all images would have.

        `reduce` is None in a single process. `flag` (1,) comes back as a number if `brings_flag`.
        `meanwhile` is called before the host waits for the device, if this loss waits. What cannot be
        compared answers with a NaN total: an error here would leave the other ranks waiting.
        """

    @abstractmethod
    def alone(self, answer: Any, crops: CropBatch, *, seed: int, dump_dir: Path | None = None) -> Tensor:
        """The total on this rank only, for looking at what went wrong.

        Raises NonFiniteError, with what there is to see in `dump_dir`.
        """


class Head(ABC):
    """One kind of head."""

    rules: ClassVar[HeadRules]
    decoder: ClassVar[type[Decoder]]

    @abstractmethod
    def build(self, embed_dim: int, num_maps: int, settings: HeadSettings, precision: str) -> Decoder:
        """A decoder with fresh weights, drawn from torch's current generator."""

    @abstractmethod
    def loss(self, config: TrainConfig) -> HeadLoss:
        """Its loss, as the configuration shapes it."""


def beside(drops: Tensor | None, images: Tensor) -> Tensor | None:
    """Drop factors on the images' device."""
    return None if drops is None else drops.to(images.device, non_blocking=True)
