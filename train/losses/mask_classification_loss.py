"""The reference's loss of one layer: transformers' Mask2Former matcher and terms, EoMT's normalisation.

Drop-in for training scripts that bring their own loop: one call a supervised layer, targets as dense
masks. The trainer itself uses `MatchedLoss`, which gives the same numbers for all layers at
once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers.models.mask2former.modeling_mask2former import Mask2FormerHungarianMatcher, Mask2FormerLoss

from maskshards.train.losses.nonfinite import NonFiniteError

TERMS = ("mask", "dice", "cross_entropy")


class MaskClassificationLoss(Mask2FormerLoss):
    """Matched mask and class losses of one layer, computed in float32 (Cheng et al. 2022, arXiv 2112.01527).

    The matching cost weighs the class with `class_coefficient`, as the original code does;
    transformers' own constructor would fix it at 1.
    """

    def __init__(
        self,
        num_points: int,
        oversample_ratio: float,
        importance_sample_ratio: float,
        mask_coefficient: float,
        dice_coefficient: float,
        class_coefficient: float,
        num_labels: int,
        no_object_coefficient: float,
    ) -> None:
        # The parent's constructor wants a model configuration; its methods need the fields below.
        nn.Module.__init__(self)
        self.num_points = num_points
        self.oversample_ratio = oversample_ratio
        self.importance_sample_ratio = importance_sample_ratio
        self.mask_coefficient = mask_coefficient
        self.dice_coefficient = dice_coefficient
        self.class_coefficient = class_coefficient
        self.num_labels = num_labels
        self.eos_coef = no_object_coefficient
        weight = torch.ones(num_labels + 1)
        weight[-1] = no_object_coefficient
        self.register_buffer("empty_weight", weight)
        self.matcher = Mask2FormerHungarianMatcher(
            cost_class=class_coefficient,
            cost_mask=mask_coefficient,
            cost_dice=dice_coefficient,
            num_points=num_points,
        )

    @torch.compiler.disable
    def forward(
        self,
        masks_queries_logits: Tensor,
        targets: Sequence[Mapping[str, Tensor]],
        class_queries_logits: Tensor,
    ) -> dict[str, Tensor]:
        """Unweighted scalars `loss_mask`, `loss_dice`, `loss_cross_entropy`.

        masks_queries_logits (B, Q, h, w); class_queries_logits (B, Q, C + 1), the last column "no
        object"; targets: one {"masks": (N, H, W) bool or float, "labels": (N,) any integer type} an
        image, N = 0 included. Mask and dice sums are divided by max(1, matched masks averaged over
        ranks). NonFiniteError for logits that are not finite: transformers' matcher would count them as
        a cost of 0.
        """
        with torch.autocast(masks_queries_logits.device.type, enabled=False):
            mask_logits, class_logits = masks_queries_logits.float(), class_queries_logits.float()
            self._check_finite(mask_logits, class_logits)
            masks = [target["masks"].to(mask_logits) for target in targets]
            labels = [target["labels"].long() for target in targets]
            pairs = self.matcher(mask_logits, class_logits, masks, labels)
            terms = self.loss_masks(mask_logits, masks, pairs, 1)
            count = self._mean_matches(sum(len(queries) for queries, _ in pairs), mask_logits.device)
            losses = {name: value / count for name, value in terms.items()}
            return losses | self.loss_labels(class_logits, labels, pairs)

    @staticmethod
    def _check_finite(mask_logits: Tensor, class_logits: Tensor) -> None:
        finite = mask_logits.isfinite().flatten(1).all(1) & class_logits.isfinite().flatten(1).all(1)
        bad = (~finite).nonzero().flatten().tolist()
        if bad:
            raise NonFiniteError(
                f"the logits of image {bad[0]} of the batch hold NaN or infinity ({len(bad)} of "
                f"{len(finite)} images do). Lower the learning rate or resume from the last checkpoint."
            )

    @staticmethod
    def _mean_matches(count: int, device: torch.device) -> Tensor:
        total = torch.tensor(float(count), device=device)
        world = 1
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(total)
            world = dist.get_world_size()
        return (total / world).clamp(min=1.0)

    def loss_total(self, losses: Mapping[str, Tensor], log_fn: Callable[..., object]) -> Tensor:
        """The weighted sum of all layers' terms; keys may carry a suffix that names the layer.

        Calls `log_fn(name, value, sync_dist=True)` for each term and once more, with `prog_bar=True`,
        for the sum. Raises ValueError for a key that holds none of "mask", "dice", "cross_entropy".
        """
        weights = dict(
            zip(TERMS, (self.mask_coefficient, self.dice_coefficient, self.class_coefficient), strict=True)
        )
        total: Tensor | None = None
        for name, value in losses.items():
            log_fn(f"losses/train_{name}", value, sync_dist=True)
            term = next((term for term in TERMS if term in name), None)
            if term is None:
                raise ValueError(f"loss {name!r}: expected a name that holds one of {', '.join(TERMS)}")
            total = value * weights[term] if total is None else total + value * weights[term]
        if total is None:
            raise ValueError("no losses to add up: pass the terms of at least one layer")
        log_fn("losses/train_loss_total", total, sync_dist=True, prog_bar=True)
        return total
