"""Whether a CPU computes in bfloat16: chosen by the processor where the recipe does not say, and told.

With units for it (AVX512-BF16 or AMX on x86, BF16 on ARM) products take half the time or less; without them
torch emulates bfloat16, slower than float32.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from maskshards.train.config.schema import ModelDtype, TrainConfig
from maskshards.train.distributed.ranks import Ranks

logger = logging.getLogger(__name__)

UNITS = frozenset(("avx512_bf16", "amx_bf16", "bf16"))  # words of Linux for such a processor
CPUINFO = Path("/proc/cpuinfo")


@lru_cache(maxsize=1)
def has_bfloat16_units() -> bool:
    """Whether this machine's processor multiplies bfloat16; False where the system does not tell."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    named = (line.partition(":") for line in lines)
    return any(
        UNITS & set(words.split()) for name, _, words in named if name.strip() in ("flags", "Features")
    )


def computes_in_bfloat16(config: TrainConfig, device: torch.device) -> bool:
    """Whether the model computes under bfloat16 autocast on this device."""
    if config.model_dtype is not ModelDtype.BFLOAT16:
        return False
    if device.type == "cuda":
        return True
    return has_bfloat16_units() if config.cpu_autocast is None else config.cpu_autocast


def with_cpu_type(
    config: TrainConfig, ranks: Ranks, earlier: Callable[[], Mapping[str, Any] | None]
) -> TrainConfig:
    """`config` with `cpu_autocast` said for a CPU, as the first rank decides for all.

    It is as in the configuration of `earlier`, plain values of the same run or of the one that trained the
    weights; else by the processor. So a run's `config.yaml` tells what it was, and every life of it computes
    alike.
    """
    if ranks.device.type == "cuda" or config.model_dtype is not ModelDtype.BFLOAT16:
        return config
    if config.cpu_autocast is not None:
        return config

    def choose() -> dict[str, Any]:  # crosses the ranks as JSON
        before = (earlier() or {}).get("cpu_autocast")
        if isinstance(before, bool):
            return {"chosen": before, "why": "as it was trained"}
        found = has_bfloat16_units()
        return {
            "chosen": found,
            "why": f"this processor has {'units for it' if found else 'no bfloat16 units'}",
        }

    answer = ranks.from_first(choose)
    chosen, why = answer["chosen"], answer["why"]
    kind = "bfloat16" if chosen else "float32"
    logger.info(
        "torch %s sees no CUDA device: on the CPU, computing in %s: %s (cpu_autocast=%s says it outright)",
        *(torch.__version__, kind, why, chosen),
    )
    return replace(config, cpu_autocast=chosen)
