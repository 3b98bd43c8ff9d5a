"""Several gloo processes normalise like torch's own batch norm in one process with the whole batch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from maskshards.train.model.ops.sync_batch_norm import SyncedBatchNorm, gradients, normalise, sync_batch_norms
from tests.forked import ForkedPython

HOST_WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal")
COUNTS = {2: (2, 3), 3: (2, 3, 1)}  # images of each rank
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}
BOUNDS = {"float64": 1e-12, "float32": 2e-5, "bfloat16": 2e-2}
LAYOUTS = ("rows", "channels_last", "far")
CASES = [(dtype, layout) for dtype in DTYPES for layout in LAYOUTS]
SLOW_CASES = [*CASES, ("float32", "aot_eager"), ("bfloat16", "inductor")]

MEMBER = """
import os, sys
from datetime import timedelta
import torch, torch.distributed as dist
from safetensors.torch import save_file
sys.path.insert(0, "tests/train/model/ops")
from test_sync_batch_norm import COUNTS, learned, whole_batch
from maskshards.train.model.ops.sync_batch_norm import SyncedBatchNorm

store, rank, ranks = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
dist.init_process_group(
    "gloo", init_method=f"file://{store}", rank=rank, world_size=ranks, timeout=timedelta(seconds=900)
)
answer = {}
for number, (dtype, layout) in enumerate(case.split(":") for case in sys.argv[4:]):
    if (number + rank) % ranks == 0:  # now one rank comes late, now another
        torch.randn(300, 300).matrix_power(64)
    parts = [part.split(COUNTS[ranks])[rank] for part in whole_batch(ranks, dtype, layout)]
    norm = SyncedBatchNorm(5, ranks)
    for name, tensor in learned(norm, *parts, layout).items():
        answer[f"{dtype}-{layout}-{name}"] = tensor
save_file(answer, f"{store}-{rank}")
dist.destroy_process_group()
"""


def whole_batch(ranks: int, dtype: str, layout: str) -> tuple[Tensor, Tensor]:
    """Images and the gradient that comes back, (B, 5, 4, 6); "far": means of 300 deviations that differ."""
    draw = torch.Generator().manual_seed(ranks)
    shape = (sum(COUNTS[ranks]), 5, 4, 6)
    images = torch.randn(shape, generator=draw, dtype=torch.float64) * torch.arange(1, 6)[:, None, None]
    grad = torch.randn(shape, generator=draw, dtype=torch.float64)
    grad = grad + images / 10  # correlated, so that the second sum of the backward pass counts
    if layout == "far":
        steps = torch.arange(shape[0]) if dtype != "bfloat16" else torch.zeros(shape[0])
        images = images + 300 + steps[:, None, None, None] / 8
    order = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    return images.to(DTYPES[dtype], memory_format=order), grad.to(DTYPES[dtype])


def learned(norm: nn.BatchNorm2d, images: Tensor, grad: Tensor, layout: str = "rows") -> dict[str, Tensor]:
    """Two steps of training, then evaluation: everything that can be seen from outside."""
    norm = norm.to(torch.promote_types(images.dtype, torch.float32))
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, 5))
        norm.bias.copy_(torch.linspace(-1, 1, 5))
    forward: Any = norm
    if layout in ("aot_eager", "inductor"):
        forward = torch.compile(norm, backend=layout, fullgraph=True, dynamic=False)
    x = images.detach().clone().requires_grad_()
    out = forward(x)
    forward(0.5 * x.detach() + 1)
    out.backward(grad)
    norm.eval()
    found = {"out": out, "of_x": x.grad, "of_weight": norm.weight.grad, "of_bias": norm.bias.grad}
    found |= {"evaluated": norm(images), **dict(norm.named_buffers())}
    return {name: tensor.detach().contiguous() for name, tensor in found.items() if tensor is not None}


@pytest.mark.parametrize(
    ("ranks", "cases"), [(2, CASES), pytest.param(3, SLOW_CASES, marks=pytest.mark.slow)]
)
def test_ranks_equal_one_process_with_the_whole_batch(
    ranks: int, cases: list[tuple[str, str]], tmp_path: Path
) -> None:
    command = ["-c", MEMBER, str(tmp_path / "store")]
    members = [
        ForkedPython(
            [*command, str(rank), str(ranks), *(":".join(case) for case in cases)],
            env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
        )
        for rank in range(ranks)
    ]
    errors = [member.communicate(900)[1] for member in members]
    assert [member.returncode for member in members] == [0] * ranks, errors
    answers = [load_file(tmp_path / f"store-{rank}") for rank in range(ranks)]
    for dtype, layout in cases:
        expected = learned(nn.BatchNorm2d(5), *whole_batch(ranks, dtype, layout))
        for name, whole in expected.items():
            parts = [answer[f"{dtype}-{layout}-{name}"] for answer in answers]
            case = f"{dtype} {layout} {name}"
            if name.startswith(("running", "num")):
                assert all(torch.equal(part, parts[0]) for part in parts), case
                found = parts[0]
            elif name in ("of_weight", "of_bias"):
                found = torch.stack(parts).sum(0)
            else:
                found = torch.cat(parts)
            assert found.dtype == whole.dtype, case
            distance = (found.double() - whole.double()).abs().max() / whole.double().abs().max()
            bound = BOUNDS[dtype] * (10 if layout == "far" else 1)
            assert distance <= bound, f"{case}: {distance}"


@pytest.fixture
def world_of_one(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class NoHostWait(TorchDispatchMode):
    """Fails where the host would wait for a value or for a shape that depends on one."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        self.seen.append(name)
        index = args[1] if name == "aten::index" else ()
        masked = any(one is not None and one.dtype is torch.bool for one in index)
        assert name not in HOST_WAITS, name
        assert not masked, "an index by a mask"
        return func(*args, **(kwargs or {}))


def test_it_is_compiled_without_a_graph_break(world_of_one: None) -> None:
    images, grad = whole_batch(2, "float32", "rows")
    expected = learned(nn.BatchNorm2d(5), images, grad)
    for name, found in learned(SyncedBatchNorm(5, 1), images, grad, "aot_eager").items():
        torch.testing.assert_close(found, expected[name], rtol=1e-5, atol=1e-5)


def test_the_host_waits_for_nothing(world_of_one: None) -> None:
    x, weight, bias = torch.randn(2, 5, 4, 6), torch.ones(5), torch.zeros(5)
    with NoHostWait() as mode:  # the operators' insides, which a mode around them would not see
        _, *statistics = normalise(x, weight, bias, 1e-5, 1)
        gradients(x, x, weight, *statistics, 1e-5)
    assert mode.seen.count("c10d::allgather_") == mode.seen.count("c10d::allreduce_") == 1
    norm = SyncedBatchNorm(5, 1)
    with NoHostWait() as mode:
        norm(x.requires_grad_()).sum().backward()
    assert "maskshards::synced_norm" in mode.seen
    assert "maskshards::synced_norm_backward" in mode.seen


def test_a_host_wait_would_be_seen() -> None:
    for wait in (lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: bool(x[0] > 0)):
        with pytest.raises(AssertionError), NoHostWait():
            wait(torch.ones(3))


def test_only_the_input_and_sums_are_kept_for_the_backward_pass(world_of_one: None) -> None:
    kept: list[Tensor] = []
    x = torch.randn(2, 5, 40, 60, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        SyncedBatchNorm(5, 1)(x)
    large = [tensor for tensor in kept if tensor.numel() > 5]
    assert [tensor.data_ptr() for tensor in large] == [x.data_ptr()]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_operators_pass_torchs_own_checks(world_of_one: None, dtype: torch.dtype) -> None:
    exact = torch.promote_types(dtype, torch.float32)
    x = torch.randn(2, 3, 2, 4, dtype=torch.float64).to(dtype).to(memory_format=torch.channels_last)
    weight, bias = (torch.randn(3, dtype=exact, requires_grad=True) for _ in range(2))
    checked = torch.library.opcheck(
        torch.ops.maskshards.synced_norm.default,
        (x.requires_grad_(), weight, bias, 1e-5, 1),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )
    assert set(checked.values()) == {"SUCCESS"}


def test_an_empty_input_is_an_error(world_of_one: None) -> None:
    with pytest.raises(ValueError, match=r"\(0, 5, 4, 6\) is empty"):
        SyncedBatchNorm(5, 2)(torch.zeros(0, 5, 4, 6))


def test_norms_are_replaced_with_their_parameters_and_keys() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, eps=1e-3, momentum=0.2), nn.Sequential())
    module[2].add_module("deep", nn.BatchNorm2d(4))
    module[1].eval()
    before = dict(module.state_dict(keep_vars=True))
    sync_batch_norms(module, 1)
    assert type(module[1]) is nn.BatchNorm2d
    sync_batch_norms(module, 2)
    after = module.state_dict(keep_vars=True)
    assert list(after) == list(before)
    assert all(after[name] is tensor for name, tensor in before.items())
    assert [type(norm) for norm in (module[1], module[2].deep)] == [SyncedBatchNorm] * 2
    assert (module[1].eps, module[1].momentum, module[1].num_ranks) == (1e-3, 0.2, 2)
    assert (module[1].training, module[2].deep.training) == (False, True)


@pytest.mark.parametrize("odd", [{"affine": False}, {"track_running_stats": False}, {"momentum": None}])
def test_a_norm_of_another_kind_is_an_error(odd: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"BatchNorm2d.*can be synced"):
        sync_batch_norms(nn.Sequential(nn.BatchNorm2d(4, **odd)), 2)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_on_cuda_it_equals_torchs_and_waits_for_nothing(dtype: str, layout: str, tmp_path: Path) -> None:
    """Over NCCL, alone: the CUDA kernels behind the two operators."""
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        images, grad = (part.cuda() for part in whole_batch(2, dtype, layout))
        learned(SyncedBatchNorm(5, 1).cuda(), images, grad)  # at the first call NCCL connects
        norm = SyncedBatchNorm(5, 1).cuda()
        torch.cuda.set_sync_debug_mode("error")
        found = learned(norm, images, grad)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        dist.destroy_process_group()
    expected = learned(nn.BatchNorm2d(5), *(part.cpu() for part in (images, grad)))
    for name, whole in expected.items():
        distance = (found[name].cpu().double() - whole.double()).abs().max() / whole.double().abs().max()
        assert distance <= BOUNDS[dtype] * (10 if layout == "far" else 1), f"{name}: {distance}"
