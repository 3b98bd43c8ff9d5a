"""The sums of the matched loss by fused kernels: allocation, launches, and the gradient.

This module needs Triton; `matched_loss` imports it when a kernel is wanted, so that machines without Triton
never miss it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from maskshards.shards.batch import VOID
from maskshards.train.losses import point_sums_triton as kernels
from maskshards.train.losses.point_sampling import row_offsets
from maskshards.train.losses.point_sums import PairSums, Rows, RowSums
from maskshards.train.losses.settings import LossSettings
from maskshards.train.model.heads.prediction import Prediction
from maskshards.train.model.ops.fused import interpreted

POINTS_A_SHARE = 512  # at least
MAGNITUDES_AT_ONCE = 2**26  # candidates whose magnitudes are held at a time: 0.25 GB


class FusedSampler:
    """`sampled.PlainSampler` in kernels: same points bit for bit, same sums within rounding.

    owner_map (B, H, W) int16, keys (2, L, B, 2) of the matching costs and of the matched rows.
    """

    def __init__(self, owner_map: Tensor, num_labels: int, keys: Tensor, settings: LossSettings) -> None:
        self.settings, self.keys, self.num_labels = settings, keys.contiguous(), num_labels
        self.owner_map = owner_map.contiguous()

    def pair_sums(self, predictions: Sequence[Prediction]) -> PairSums:
        """One launch a layer, whose maps need not stand together, and one addition for all of them."""
        device, (batch, queries) = self.owner_map.device, predictions[0].class_logits.shape[:2]
        tile = kernels.OF_MASKS if predictions[0].masks is not None else kernels.OF_FEATURES
        num_shares = min(tile.shares, -(-self.settings.num_points // POINTS_A_SHARE))
        labels, shares = self.num_labels, (len(predictions), num_shares, batch)
        products = torch.empty((*shares, queries, 2, labels), device=device)
        of_queries = torch.empty((*shares, queries, 2), device=device)
        of_labels = torch.empty((*shares, labels + 1), device=device)
        for layer, prediction in enumerate(predictions):
            outputs = products[layer], of_queries[layer], of_labels[layer]
            self._launch_costs(*_costs_of(prediction), self.keys[0, layer], outputs, tile)
        products, of_queries, of_labels = (part.sum(1) for part in (products, of_queries, of_labels))
        (with_logit, with_sigmoid), (softplus, sigmoid) = products.unbind(3), of_queries.unbind(3)
        return PairSums(
            with_logit, with_sigmoid, softplus, sigmoid, of_labels[..., :labels], of_labels[..., labels]
        )

    def _launch_costs(
        self, maps: Tensor, vectors: Tensor, keys: Tensor, outputs: tuple[Tensor, ...], tile: kernels.Tile
    ) -> None:
        """maps (B, Q, h, w), or features (B, C, h, w) and vectors (B, Q, C)."""
        of_features = tile is kernels.OF_FEATURES
        batch, (height, width), queries = len(maps), maps.shape[2:], outputs[0].shape[2]
        points, num_shares = self.settings.num_points, len(outputs[0])
        if maps.numel() == 0 or queries == 0:
            return
        block_queries = min(max(16, triton.next_power_of_2(queries)), tile.queries)
        block_labels = min(max(16, triton.next_power_of_2(self.num_labels)), tile.labels)
        blocks = triton.cdiv(queries, block_queries) * triton.cdiv(self.num_labels, block_labels)
        kernels.cost_sums[(batch, blocks, num_shares)](
            maps, vectors, self.owner_map, keys, *outputs,
            points, triton.cdiv(points, num_shares), self.num_labels,
            maps.stride(0), vectors.stride(0), maps.stride(1), maps.stride(3),
            height, width, *self.owner_map.shape[1:],
            Q=queries, C=maps.shape[1], VOID=VOID, IGNORE_VOID=self.settings.ignore_void,
            OF_FEATURES=of_features, BLOCK_Q=block_queries, BLOCK_P=tile.points,
            BLOCK_K=block_labels, BLOCK_C=tile.channels, WIDENED=interpreted(),
            **kernels.OPTIONS | {"num_warps": tile.warps},
        )  # fmt: skip

    def row_sums(self, rows: Rows) -> RowSums:
        layer, images, _, wanted = rows.place
        keys = self.keys[1][layer, images]
        drawn = keys, row_offsets(keys, rows.classes)
        maps = rows.maps.contiguous()
        chosen = self._uncertain(maps.detach(), *drawn)
        sums = _RowSums.apply(
            maps, self.owner_map, images.contiguous(), wanted.contiguous(), *drawn, chosen, self.settings
        )
        return RowSums(*sums.unbind(1))

    def _uncertain(self, maps: Tensor, keys: Tensor, offsets: Tensor) -> Tensor:
        """(R, kept) int64: the numbers of each row's least certain candidates, in no set order."""
        candidates, kept, _ = self.settings.point_counts
        if kept == 0:
            return torch.empty((len(maps), 0), dtype=torch.int64, device=maps.device)
        at_once = max(1, MAGNITUDES_AT_ONCE // candidates)
        chosen = [torch.empty((0, kept), dtype=torch.int64, device=maps.device)]
        for part in range(0, len(maps), at_once):
            some = slice(part, part + at_once)
            held = torch.empty((len(maps[some]), candidates), device=maps.device)
            grid = (len(held), triton.cdiv(candidates, kernels.BLOCK_POINTS))
            kernels.magnitudes[grid](
                maps[some], keys[some], offsets[some], held, candidates, *maps.shape[1:],
                BLOCK_P=kernels.BLOCK_POINTS, **kernels.OPTIONS,
            )  # fmt: skip
            chosen.append(torch.topk(held, kept, dim=1, largest=False, sorted=False).indices)
        return torch.cat(chosen)


def _costs_of(prediction: Prediction) -> tuple[Tensor, Tensor]:
    """What one layer's costs are read from, as the kernel takes it: maps twice, or features and vectors."""
    if prediction.masks is None and prediction.product is not None:
        features, vectors = prediction.product.features.detach(), prediction.product.vectors.detach()
        if features.stride(2) != features.shape[3] * features.stride(3):
            features = features.contiguous()
        own = vectors[:, prediction.layer]
        return features, own if own[0].is_contiguous() else own.contiguous()
    maps = prediction.mask_logits.detach()
    maps = maps if maps[0].is_contiguous() else maps.contiguous()
    return maps, maps


class _RowSums(torch.autograd.Function):
    """(R, 5) sums in the order of RowSums' fields; the gradient of the maps samples them again."""

    @staticmethod
    def forward(
        ctx: Any, maps: Tensor, owner_map: Tensor, images: Tensor, wanted: Tensor, keys: Tensor,
        offsets: Tensor, chosen: Tensor, settings: LossSettings,
    ) -> Tensor:  # fmt: skip
        blocks = triton.cdiv(settings.num_points, kernels.BLOCK_POINTS)
        sums = torch.empty((len(maps), blocks, 5), device=maps.device)
        inputs = (maps, owner_map, images, wanted, keys, offsets, chosen)
        ctx.settings = settings
        ctx.save_for_backward(*inputs)
        _launch_rows(kernels.row_sums, inputs, settings, (sums,))
        return sums.sum(1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        maps = ctx.saved_tensors[0]
        grad_maps = torch.zeros_like(maps, dtype=torch.float32)
        _launch_rows(kernels.row_gradients, ctx.saved_tensors, ctx.settings, (grad.contiguous(), grad_maps))
        return (grad_maps.to(maps.dtype), *[None] * 7)


def _launch_rows(
    kernel: Any, inputs: Sequence[Tensor], settings: LossSettings, outputs: tuple[Tensor, ...]
) -> None:
    """`row_sums` or `row_gradients` over all blocks of all rows."""
    maps, owner_map = inputs[:2]
    candidates, kept, _ = settings.point_counts
    if len(maps) == 0:
        return
    kernel[(len(maps), triton.cdiv(settings.num_points, kernels.BLOCK_POINTS))](
        *inputs, *outputs, kept, settings.num_points, candidates, *maps.shape[1:], *owner_map.shape[1:],
        VOID=VOID, IGNORE_VOID=settings.ignore_void, BLOCK_P=kernels.BLOCK_POINTS, **kernels.OPTIONS,
    )  # fmt: skip
