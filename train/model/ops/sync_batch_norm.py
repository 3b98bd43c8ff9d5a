"""Batch norm over the images of all ranks: what one process with the whole batch would compute.

Two operators, forward and backward, with one exchange of per-channel sums each (NCCL on CUDA, gloo on CPUs).
The host waits for nothing, torch.compile puts both into its graph as they are, and between the passes only
the input and the statistics are kept. Statistics are float32 (float64 for float64 inputs) whatever the inputs
are. Ioffe and Szegedy 2015, arXiv 1502.03167.

Letters: R rank, B image, C channel.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn


class SyncedBatchNorm(nn.BatchNorm2d):
    """torch.nn.BatchNorm2d whose batch, in training, is that of all ranks of the default process group.

    Parameters, buffers and evaluation are torch's own. Every rank must call it as often as every other; the
    numbers of images may differ, but none may be 0. The running statistics come out bit for bit the same on
    all ranks.
    """

    def __init__(self, num_features: int, num_ranks: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(num_features, eps, momentum)
        self.num_ranks = num_ranks
        self.alone = False  # this rank's images only, and no exchange: for looking at what went wrong

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, h, w) of the same type as the input; ValueError for an empty input in training."""
        if not self.training or self.alone:
            return super().forward(input)
        self._check_input_dim(input)
        if input.numel() == 0:
            raise ValueError(f"batch norm over {self.num_ranks} ranks: input {tuple(input.shape)} is empty")
        normed, mean, variance, count = synced_norm(input, self.weight, self.bias, self.eps, self.num_ranks)
        self._learn(mean.detach(), variance.detach(), count)
        return normed

    @torch.no_grad()
    def _learn(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Move the running statistics towards this batch's, the variance without bias, as torch does."""
        rate = cast(float, self.momentum)
        self.get_buffer("num_batches_tracked").add_(1)
        self.get_buffer("running_mean").mul_(1 - rate).add_(mean, alpha=rate)
        self.get_buffer("running_var").mul_(1 - rate).add_(variance * (count / (count - 1)), alpha=rate)


def sync_batch_norms(module: nn.Module, num_ranks: int) -> None:
    """Replace the batch norms inside `module` by synced ones; parameters, buffers and keys stay.

    Nothing is to do for a single rank. ValueError for a norm without weights or running statistics.
    """
    if num_ranks == 1:
        return
    for parent in list(module.modules()):
        for name, norm in list(parent.named_children()):
            if type(norm) is nn.BatchNorm2d:
                parent.add_module(name, _synced(norm, num_ranks))


def _synced(norm: nn.BatchNorm2d, num_ranks: int) -> SyncedBatchNorm:
    if not norm.affine or not norm.track_running_stats or norm.momentum is None:
        raise ValueError(f"{norm}: only norms with weights, running statistics and a momentum can be synced")
    synced = SyncedBatchNorm(norm.num_features, num_ranks, norm.eps, norm.momentum)
    synced.weight, synced.bias = norm.weight, norm.bias
    for name, buffer in norm.named_buffers():
        synced.register_buffer(name, buffer)
    return synced.train(norm.training)


def normalise(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, num_ranks: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x normalised, and of all ranks: mean (C,), biased variance (C,), number of values a channel (1,)."""
    exact, x = statistics_type(x), x.contiguous(memory_format=dense_format(x))
    # Made by torch's kernels, in one pass over x; the statistics handed in are those that would be moved.
    unused = torch.zeros((2, x.shape[1]), dtype=exact, device=x.device)
    own_mean, own_variance = torch.batch_norm_update_stats(x, unused[0], unused[1], 0.0)
    own_count = torch.full((1,), x.numel() // x.shape[1], dtype=exact, device=x.device)
    mean, variance, count = combined(torch.cat((own_mean, own_variance, own_count)), num_ranks)
    normed, _, _ = torch.native_batch_norm(
        x, weight.to(exact), bias.to(exact), mean, variance, False, 0.0, eps
    )
    return normed, mean, variance, count


def combined(own: Tensor, num_ranks: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and count of all ranks from each rank's own in a row (2 C + 1,).

    Chan et al. 1979, "Updating formulae and a pairwise algorithm for computing sample variances": deviations
    from the common mean, never the difference of two large squares. Gathered rather than summed, so that
    every rank adds the same rows in the same order.
    """
    rows = [torch.empty_like(own) for _ in range(num_ranks)]
    dist.all_gather(rows, own)
    table = torch.stack(rows).double()  # a few thousand numbers
    channels = len(own) // 2
    means, variances, counts = table.split((channels, channels, 1), 1)
    count = counts.sum(0)
    share = counts / count
    mean = (share * means).sum(0)
    variance = (share * (variances + (means - mean).square())).sum(0)
    return mean.to(own.dtype), variance.to(own.dtype), count.to(own.dtype)


def gradients(
    grad: Tensor, x: Tensor, weight: Tensor, mean: Tensor, variance: Tensor, count: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (B, C, h, w), weight (C,) and bias (C,) from grad, which is like x.

    The last two are of this rank's images: whoever averages gradients over ranks does the rest.
    """
    exact, layout = statistics_type(x), dense_format(x)
    x, grad = x.contiguous(memory_format=layout), grad.contiguous(memory_format=layout)
    scale, inverse = weight.to(exact), (variance + eps).rsqrt()
    _, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
        grad, x, scale, None, None, mean, inverse, True, eps, [False, True, True]
    )
    sums = torch.stack((of_bias, of_weight))  # of grad, and of grad * normalised x
    dist.all_reduce(sums)
    of_x = _input_gradient(grad, x, scale, mean, inverse, sums, count)
    return of_x, of_weight.to(weight.dtype), of_bias.to(weight.dtype)


def _input_gradient(
    grad: Tensor, x: Tensor, scale: Tensor, mean: Tensor, inverse: Tensor, sums: Tensor, count: Tensor
) -> Tensor:
    """scale * inverse * (grad - mean of grad - normalised x * mean of grad * normalised x)."""
    if x.is_cuda:  # the same in one pass
        number = count.to(torch.int32)
        return torch.batch_norm_backward_elemt(
            grad, x, mean, inverse, scale, sums[0], sums[1] / inverse, number
        )
    of_mean, of_spread = sums / count
    out = (x - _channels(mean)).mul_(_channels(-inverse * of_spread)).add_(grad).sub_(_channels(of_mean))
    return out.mul_(_channels(scale * inverse)).to(x.dtype)


def _channels(values: Tensor) -> Tensor:
    """(C,) -> (C, 1, 1), which broadcasts over images and places."""
    return values[:, None, None]


def statistics_type(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def dense_format(x: Tensor) -> torch.memory_format:
    """The layout in which the kernels read x: channels-last if x has it, else rows."""
    last = x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


synced_norm = torch.library.custom_op("maskshards::synced_norm", normalise, mutates_args=())
synced_norm_backward = torch.library.custom_op("maskshards::synced_norm_backward", gradients, mutates_args=())


@synced_norm.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, num_ranks: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean, variance = (x.new_empty(x.shape[1], dtype=statistics_type(x)) for _ in range(2))
    return torch.empty_like(x, memory_format=dense_format(x)), mean, variance, mean.new_empty(1)


@synced_norm_backward.register_fake
def _(
    grad: Tensor, x: Tensor, weight: Tensor, mean: Tensor, variance: Tensor, count: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    of_x = torch.empty_like(x, memory_format=dense_format(x))
    return of_x, torch.empty_like(weight), torch.empty_like(weight)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, _, ctx.eps, _ = inputs
    ctx.save_for_backward(x, weight, *output[1:])


def _differentiate(ctx: Any, grad: Tensor, *of_statistics: Any) -> tuple[Tensor | None, ...]:
    """The statistics are read by the running ones alone, which have no gradient."""
    return (*synced_norm_backward(grad, *ctx.saved_tensors, ctx.eps), None, None)


synced_norm.register_autograd(_differentiate, setup_context=_keep)
