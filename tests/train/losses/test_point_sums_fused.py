"""The fused sums against the same loop over dense masks in float64 as the plain ones, and the whole
loss against transformers' own: in Triton's CPU interpreter, and on CUDA where there is one.

The interpreter must be chosen before Triton is imported, so the cases run in processes of their own.
"""

import importlib.util
import os
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from maskshards.train.losses.matched_loss import loss_kernels_fit
from maskshards.train.losses.point_sums import PlainSampler, Sampler
from maskshards.train.losses.settings import LossSettings
from tests import forked
from tests.train.model.interpreted import skip_old_interpreter

pytest.importorskip("triton")

HERE = Path(__file__)
CASES = {
    "void is no mask": LossSettings(num_points=40),
    "void ignored": LossSettings(num_points=21, ignore_void=True),
    "only fresh points": LossSettings(num_points=9, importance_sample_ratio=0.0),
}


def plain_tests() -> ModuleType:
    """The module that tests the plain sums: its inputs and checks serve here too."""
    spec = importlib.util.spec_from_file_location("plain_tests", HERE.with_name("test_point_sums.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(name: str, device: str, dtype: torch.dtype) -> str:
    """Both kinds of sums, and the gradient of the maps, of one case; its name, when they hold."""
    from maskshards.train.losses import (
        point_sums_fused as loss_kernels,  # with Triton, whose interpreter must be asked for before
    )

    plain, settings = plain_tests(), CASES[name]
    predictions, owner_map, keys = plain.make_inputs(dtype)
    # as the query decoder gives them: views of one tensor in which the layers of an image stand together
    together = torch.stack([p.mask_logits for p in predictions], 1).to(device).unbind(1)
    moved = [type(p)(p.class_logits.to(device), m) for p, m in zip(predictions, together, strict=True)]
    with pytest.MonkeyPatch.context() as patch:  # several shares of the points, several parts of the rows
        patch.setattr(loss_kernels, "POINTS_A_SHARE", 16)
        patch.setattr(loss_kernels, "MAGNITUDES_AT_ONCE", 130)
        sampler = loss_kernels.FusedSampler(owner_map.to(device), plain.LABELS, keys.to(device), settings)
        sums = sampler.pair_sums(moved)
        back = type(sums)(*(getattr(sums, field).cpu() for field in sums.__dataclass_fields__))
        plain.check_pairs(back, predictions, owner_map, keys, settings, 1e-4)
        for width, layout in ((5, torch.contiguous_format), (40, torch.channels_last)):
            products, exact = plain.make_products(dtype, width, layout)
            product = products[0].product
            there = type(product)(product.vectors.to(device), product.features.to(device))
            sums = sampler.pair_sums([replace(p, product=there) for p in products])
            wanted = PlainSampler(owner_map, plain.LABELS, keys, settings).pair_sums(exact)
            limit = 1e-5 if dtype is torch.float32 else 1e-2  # samples are rounded for the matrix units
            for field in sums.__dataclass_fields__:
                error = getattr(sums, field).cpu() - getattr(wanted, field)
                assert error.abs().max() < limit * getattr(wanted, field).abs().max(), field
        limit = (
            1e-4 if dtype is torch.float32 else 1e-3
        )  # the gradient of bfloat16 maps is rounded to bfloat16
        plain.check_rows(_Moved(sampler, device), predictions, owner_map, keys, settings, limit)
    return name


class _Moved:
    """A sampler on a device, with rows and sums on the host."""

    def __init__(self, sampler: Sampler, device: str) -> None:
        self.sampler, self.device = sampler, device

    def row_sums(self, rows):  # type: ignore[no-untyped-def]
        sums = self.sampler.row_sums(
            type(rows)(*(t.to(self.device) for t in (rows.maps, rows.place, rows.classes)))
        )
        return type(sums)(*(getattr(sums, field).cpu() for field in sums.__dataclass_fields__))


def interpreted_tests(*options: str) -> str:
    """What pytest prints of the tests of the loss."""
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-n0", *options]
    done = forked.run(
        [*words, str(HERE.with_name("test_matched_loss.py"))], env={**os.environ, "TRITON_INTERPRET": "1"}
    )
    skip_old_interpreter(done.stdout)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_interpreted_sums_equal_a_loop_over_dense_masks() -> None:
    code = (
        "import importlib.util, torch, warnings; warnings.simplefilter('error');"
        f"spec = importlib.util.spec_from_file_location('cases', {str(HERE)!r});"
        "cases = importlib.util.module_from_spec(spec); spec.loader.exec_module(cases);"
        "print(*(cases.check(name, 'cpu', torch.float32) for name in cases.CASES), sep=', ');"
        "print(cases.check('void ignored', 'cpu', torch.bfloat16))"
    )
    done = forked.run(["-c", code], env={**os.environ, "TRITON_INTERPRET": "1"})
    skip_old_interpreter(done.stderr)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == [", ".join(CASES), "void ignored"]


def test_interpreted_loss_equals_the_reference_layer_by_layer() -> None:
    assert "3 passed" in interpreted_tests("-k", "reference and usual")


@pytest.mark.slow
def test_every_test_of_the_loss_holds_for_the_interpreted_kernels() -> None:
    assert " passed" in interpreted_tests()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_cuda_sums_equal_a_loop_over_dense_masks(name: str, dtype: torch.dtype) -> None:
    assert check(name, "cuda", dtype) == name


def test_where_the_kernels_apply(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.zeros(1, 2, 3, 4)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not loss_kernels_fit(logits, 3)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert loss_kernels_fit(logits, 3)
    assert loss_kernels_fit(logits, 1)
    assert not loss_kernels_fit(logits.double(), 3)
    assert not loss_kernels_fit(logits, 0)  # crops without a label have nothing to compare
