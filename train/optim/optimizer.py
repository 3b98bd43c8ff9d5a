"""AdamW over the trainable parameters, in groups, and the gradient clip.

Weight decay pulls matrices and kernels only. Norm scales, biases and embeddings (query, level and
position tables) are left alone, as Mask2Former's own recipe does: a decayed norm or query table changes
what the head can express.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from maskshards.train.config.schema import ConfigError, OptimizerConfig
from maskshards.train.optim.lr_schedule import Schedule

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)
EMBEDDING_WORDS = ("embed", "level_encoding", "query_feat")  # parameter names that are tables, not matrices


def is_decayed(module: nn.Module, name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies to `module`'s own parameter `name` (the last part of its dotted name)."""
    if isinstance(module, (*NORMS, nn.Embedding)) or parameter.ndim < 2:
        return False
    return not any(word in name for word in EMBEDDING_WORDS)


def named_trainables(module: nn.Module) -> Iterator[tuple[str, nn.Parameter, bool]]:
    """(dotted name, parameter, decayed?) of every trainable parameter once, in the order of registration."""
    seen: set[int] = set()
    for prefix, owner in module.named_modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                yield (f"{prefix}.{name}" if prefix else name), parameter, is_decayed(owner, name, parameter)


def build_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW with a group for each (decayed?, rate); each group remembers its full rate as `full_lr`.

    Raises ConfigError for an lr multiplier that fits no parameter; it lists beginnings that do.
    """
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    used = set()
    for name, parameter, decayed in named_trainables(module):
        prefix = longest_prefix(name, config.lr_multipliers)
        used.add(prefix)
        factor = config.lr_multipliers[prefix] if prefix is not None else 1.0
        groups.setdefault((decayed, factor), []).append(parameter)
    unused = [prefix for prefix in config.lr_multipliers if prefix not in used]
    if unused:
        raise ConfigError(unused_multiplier(unused[0], module))
    settings = [
        {"params": members, "weight_decay": config.weight_decay * decayed, "full_lr": config.lr * factor}
        for (decayed, factor), members in sorted(groups.items(), key=lambda entry: entry[0], reverse=True)
    ]
    return torch.optim.AdamW(settings, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)


def unused_multiplier(prefix: str, module: nn.Module) -> str:
    """Why a multiplier changes nothing, and the beginnings, down to the third dot, that name something."""
    names = [name for name, _, _ in named_trainables(module)]
    if any(f"{name}.".startswith(f"{prefix}.") for name in names):
        return f"optimizer.lr_multipliers: {prefix} changes nothing, longer names stand for all that it fits"
    known = sorted({".".join(name.split(".")[:depth]) for name in names for depth in (1, 2, 3)})
    return (
        f"optimizer.lr_multipliers: {prefix} begins no name of a trained parameter (whole words count); "
        f"there are {', '.join(known)} and longer ones"
    )


def longest_prefix(name: str, prefixes: Iterable[str]) -> str | None:
    """The longest of `prefixes` that `name` begins with, whole words only."""
    fitting = [prefix for prefix in prefixes if f"{name}.".startswith(f"{prefix}.")]
    return max(fitting, key=len, default=None)


def set_rates(optimizer: torch.optim.Optimizer, schedule: Schedule, step: int) -> float:
    """Give every group its rate for step `step` (from 0); returns the rate without multipliers."""
    factor = schedule(step)
    for group in optimizer.param_groups:
        group["lr"] = group["full_lr"] * factor
    return float(optimizer.defaults["lr"] * factor)


def clip_gradients(module: nn.Module, largest_norm: float) -> Tensor:
    """Scale all gradients so that their joint norm is at most `largest_norm` (inf: only measure).

    Returns the norm before clipping, a scalar tensor on the device; reading it is the caller's decision.
    """
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if not math.isinf(largest_norm):
        nn.utils.clip_grads_with_norm_(module.parameters(), largest_norm, norm)
    return norm


def optimizer_tensors(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as flat tensors `SLOT/PARAMETER`, the form that a checkpoint holds."""
    return {
        f"{slot}/{name}": value
        for name, parameter, _ in named_trainables(module)
        for slot, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(
    module: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    """The inverse of `optimizer_tensors`; ValueError lists parameters and state that do not fit."""
    by_name = {name: parameter for name, parameter, _ in named_trainables(module)}
    slots = sorted({key.split("/", 1)[0] for key in tensors})
    expected = {f"{slot}/{name}" for slot in slots for name in by_name}
    missing, unexpected = sorted(expected - tensors.keys()), sorted(tensors.keys() - expected)
    if missing or unexpected:
        raise ValueError(
            f"optimiser state does not fit the model: missing {missing[:8]}, unexpected {unexpected[:8]}"
        )
    for name, parameter in by_name.items():
        state = optimizer.state[parameter]
        for slot in slots:
            value = tensors[f"{slot}/{name}"]
            state[slot] = value.to(parameter.device, copy=True)
