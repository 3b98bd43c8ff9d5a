"""What this machine is: versions, its two ceilings (bytes and products), and which attention it chooses."""

from __future__ import annotations

import os
import platform
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from maskshards.train.bench.hardware import copy_gb_per_s, matmul_tflops, median_ms
from maskshards.train.bench.journal import Figures
from maskshards.train.bench.parts.setting import Setting
from maskshards.train.model.backbone.architectures import NUM_REGISTERS, architecture

PACKAGES = ("torch", "triton", "transformers", "numpy", "scipy", "omegaconf", "torchvision")
COPIED_BYTES = 2**32  # many times the last-level cache of any GPU
BACKENDS = (
    SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH,
)  # fmt: skip
QUERY_HEADS = 16  # of the query decoder


def ceilings(setting: Setting) -> Figures:
    """Versions, copy bandwidth, and the rate of large products in bfloat16 and float32."""
    device, cuda = setting.device, setting.device.type == "cuda"
    found: Figures = {"commit": commit(), "python": platform.python_version()}
    found["host cores"] = len(os.sched_getaffinity(0))
    found |= {name: version_of(name) for name in PACKAGES}
    found["torch"] = torch.__version__  # with the CUDA that it was built for
    if cuda:
        facts = torch.cuda.get_device_properties(device)
        found |= {
            "device": facts.name, "memory_gib": facts.total_memory / 2**30, "cuda": torch.version.cuda,
            "multiprocessors": facts.multi_processor_count, "capability": f"{facts.major}.{facts.minor}",
        }  # fmt: skip
    setting.copy_gb_per_s = copy_gb_per_s(device, COPIED_BYTES if cuda else 2**20, setting.repeats)
    side = 8192 if cuda else 64
    found["copy_gb_per_s"] = setting.copy_gb_per_s
    for name, dtype in (("bf16", torch.bfloat16), ("float32", torch.float32)):
        found[f"matmul_{name}_tflop_per_s"] = matmul_tflops(device, dtype, side, 20 if cuda else 1)
    return found


def commit() -> str:
    """The checkout's commit, shortened; "unknown" without git or outside one."""
    here = Path(__file__).parent
    try:
        words = ["git", "-C", str(here), "describe", "--always", "--dirty"]
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def attention_backends(setting: Setting) -> Figures:
    """For each shape of attention in a step: the backend that torch chooses, and each one's milliseconds."""
    found: Figures = {}
    for name, (queries, places, heads, width, masked) in attention_shapes(setting).items():
        q, k, v, mask = attention_inputs(setting, queries, places, heads, width, masked)
        chosen = SDPBackend(torch._fused_sdp_choice(q, k, v, attn_mask=mask))
        row: dict[str, object] = {"shape": [list(q.shape), list(k.shape)], "chosen": chosen.name}
        for backend in BACKENDS:
            row[backend.name] = timed_backend(setting, backend, q, k, v, mask)
        found[name] = row
    return found


def attention_shapes(setting: Setting) -> dict[str, tuple[int, int, int, int, bool]]:
    """Queries, places, heads, width of a head, masked or not; by name."""
    config = setting.config(setting.widths[0])
    arch = architecture(config.model.dino_hub or "")
    height, width = config.transforms.train.crop_size or (512, 512)
    tokens = (height // arch.patch_px) * (width // arch.patch_px) + 1 + NUM_REGISTERS
    heads = int(arch.settings["num_attention_heads"])
    shapes = {"backbone": (tokens, tokens, heads, arch.embed_dim // heads, False)}
    queries = config.decoder_head.num_queries
    for hidden in setting.widths:
        each = hidden // QUERY_HEADS
        shapes[f"queries among themselves, {hidden}"] = (queries, queries, QUERY_HEADS, each, False)
        for stride in (32, 16, 8):
            places = (height // stride) * (width // stride)
            shapes[f"queries at stride {stride}, {hidden}"] = (queries, places, QUERY_HEADS, each, True)
    return shapes


def attention_inputs(
    setting: Setting, queries: int, places: int, heads: int, width: int, masked: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Random q, k and v as the step has them (B, heads, ., width), bfloat16, and a mask (B, 1, Q, S)."""
    batch, generator = setting.config(setting.widths[0]).bs, torch.Generator(setting.device).manual_seed(0)

    def draw(length: int) -> Tensor:
        flat = torch.randn((batch, length, heads, width), generator=generator, device=setting.device)
        return flat.to(torch.bfloat16).transpose(1, 2)

    mask = None
    if masked:
        mask = torch.rand((batch, 1, queries, places), generator=generator, device=setting.device) < 0.3
        mask[..., 0] = True  # a query that may look nowhere is an error of another kind
    return draw(queries), draw(places), draw(places), mask


def timed_backend(
    setting: Setting, backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
) -> float | str:
    """Milliseconds of a forward pass by this backend, or "no" where it cannot."""

    def call() -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    with only(backend):
        try:
            return median_ms(call, setting.device, setting.repeats)
        except RuntimeError:
            return "no"


@contextmanager
def only(backend: SDPBackend) -> Iterator[None]:
    """This backend or none; torch's warnings of why it cannot are left out."""
    with warnings.catch_warnings(), sdpa_kernel([backend]):
        warnings.simplefilter("ignore")
        yield
