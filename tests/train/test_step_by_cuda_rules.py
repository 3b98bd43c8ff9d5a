"""A whole training step by CUDA's rules, watched on a CPU: types and layouts at the doors between the parts,
waits of the host, and operators that CUDA has no kernel for; forward, backward and optimiser.

What it cannot see is an operator that meets tensors of two devices: here all are the CPU's.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torchgen
import yaml
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from maskshards.train.bench.budgeted import Budget
from maskshards.train.bench.cuda_rules import CudaRules
from maskshards.train.bench.parts.setting import Setting
from maskshards.train.bench.step import BenchStep
from maskshards.train.bench.synthetic import synthetic_batches
from maskshards.train.tracking.phase_timer import PhaseClock, phase_modules

pytestmark = pytest.mark.slow

LOW, WIDTH = torch.bfloat16, 64
WAITS = {  # the host needs a value, or a size that depends on values
    "_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique_consecutive",
    "_unique2", "unique_dim", "bincount",
}  # fmt: skip
# Operators of the CPU alone, and what stands in their place on CUDA.
CPU_ONLY = {
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention_for_cpu_backward",
}  # fmt: skip
RUNS_ON_CUDA = {
    "CUDA", "CompositeExplicitAutograd", "CompositeImplicitAutograd",
    "CompositeExplicitAutogradNonFunctional",
}  # fmt: skip


class Watch(TorchDispatchMode):
    """Notes every operator with the types of its 4-dimensional results, and what would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: set[Any] = set()
        self.waits: Counter[str] = Counter()
        self.stride_4: list[tuple[str, torch.dtype]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        self.operators.add(func)
        by_mask = "index" in name and any(
            isinstance(leaf, Tensor) and leaf.dtype is torch.bool for leaf in tree_leaves(args[1:2])
        )
        if (
            name in WAITS
            or by_mask
            or (name == "repeat_interleave" and not (kwargs or {}).get("output_size"))
        ):
            self.waits[name] += 1
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.dim() == 4 and leaf.shape[1:] == (WIDTH, 16, 16):
                self.stride_4.append((name, leaf.dtype))
        return out


@cache
def kernels() -> dict[str, set[str]]:
    """The keys under which torch lists a kernel, by operator with overload; empty for those it generates."""
    path = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native" / "native_functions.yaml"
    found = {}
    for entry in yaml.safe_load(path.read_text(encoding="utf-8")):
        keys = {key.strip() for names in entry.get("dispatch", {}) for key in names.split(",")}
        if "ufunc_inner_loop" in entry:  # torch writes the kernels of both devices from one formula
            keys.add("CUDA")
        delegate = entry.get("structured_delegate")
        found[entry["func"].split("(")[0]] = {f"like {delegate}"} if delegate else keys
    return found


def has_cuda_kernel(name: str) -> bool:
    """Whether torch can run the operator on CUDA."""
    keys = kernels().get(name)
    if keys is None or not keys:  # generated from another one, or composed of others
        return True
    like = next((key[5:] for key in keys if key.startswith("like ")), None)
    return has_cuda_kernel(like) if like else bool(keys & RUNS_ON_CUDA)


@contextmanager
def doors(bench: BenchStep) -> Iterator[dict[str, list[Tensor]]]:
    """What each part of the model hands on, by its name."""
    seen: dict[str, list[Tensor]] = {}

    def note(name: str) -> Any:
        def look(module: Any, args: Any, out: Any) -> None:
            if name == "query decoder":
                out = [(p.class_logits, p.mask_logits) for p in out]
            seen[name] = [leaf.detach() for leaf in tree_leaves(out)]

        return look

    handles = [m.register_forward_hook(note(name)) for name, m in phase_modules(bench.segmenter).items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@pytest.fixture(scope="module")
def step(tmp_path_factory: pytest.TempPathFactory) -> tuple[Watch, dict[str, list[Tensor]], BenchStep]:
    """The third step of a tiny model, watched."""
    setting = Setting(torch.device("cpu"), tmp_path_factory.mktemp("out"), Budget(600), True)
    bench, batches = setting.bench(WIDTH), synthetic_batches(2, 6, pin=False)
    for _ in range(2):
        bench.step(batches, PhaseClock(bench.device))
    watch = Watch()
    with doors(bench) as seen, CudaRules(), watch:
        bench.step(batches, PhaseClock(bench.device))
    return watch, seen, bench


def test_what_passes_the_doors_has_autocasts_type(
    step: tuple[Watch, dict[str, list[Tensor]], BenchStep],
) -> None:
    _, seen, _ = step
    assert {t.dtype for t in seen["adapter"]} == {LOW}
    assert {t.dtype for t in seen["pixel decoder"]} == {LOW}
    assert {t.dtype for t in seen["query decoder"]} == {LOW}
    assert len(seen["query decoder"]) == 20


def test_no_map_at_stride_4_becomes_float32_but_where_it_is_meant(
    step: tuple[Watch, dict[str, list[Tensor]], BenchStep],
) -> None:
    """Statistics are float32 inside the kernels; a map of that size in float32 is twice the traffic."""
    wrong = Counter(name for name, dtype in step[0].stride_4 if dtype is torch.float32)
    assert wrong == {}


def test_the_host_waits_for_nothing_but_the_matching_costs(
    step: tuple[Watch, dict[str, list[Tensor]], BenchStep],
) -> None:
    assert step[0].waits == {}


def test_every_operator_has_a_kernel_on_cuda(step: tuple[Watch, dict[str, list[Tensor]], BenchStep]) -> None:
    names = {func._schema.name.partition("::")[2]: func for func in step[0].operators}
    assert len(names) > 60
    missing = []
    for func in step[0].operators:
        space, _, name = func._schema.name.partition("::")
        overload = f".{func._schema.overload_name}" if func._schema.overload_name else ""
        if space == "aten" and name not in CPU_ONLY and not has_cuda_kernel(name + overload):
            missing.append(name + overload)
    assert missing == []


def test_the_watch_sees_a_wait_and_a_missing_kernel() -> None:
    watch = Watch()
    with watch:
        values = torch.ones(3)
        float(values.sum())
        values[values > 0].sum()
    assert watch.waits["_local_scalar_dense"] == 1
    assert watch.waits["index"] == 1
    assert not has_cuda_kernel("mkldnn_linear")
    assert has_cuda_kernel("add.Tensor")


def test_without_the_helper_a_resize_would_be_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The slip that cost 17 GB a step: the day that it comes back, this file says so."""
    import torch.nn.functional as F

    from maskshards.train.model.heads import adapter

    monkeypatch.setattr(adapter, "resized", lambda m, size: F.interpolate(m, size, mode="bilinear"))
    bench = Setting(torch.device("cpu"), tmp_path, Budget(600), True).bench(WIDTH)
    watch = Watch()
    (batch,) = islice(synthetic_batches(2, 6, pin=False), 1)
    with CudaRules(), watch:
        bench.step(iter([batch]), PhaseClock(bench.device))
    assert ("upsample_bilinear2d", torch.float32) in watch.stride_4
