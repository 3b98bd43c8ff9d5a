"""Costs of more queries, labels and channels than one program holds, from masks and from features; all else
the kernels compute is tested in test_point_sums_fused.py.
"""

import os

import pytest

from tests import forked
from tests.train.model.interpreted import skip_old_interpreter

pytest.importorskip("triton")

CASE = """
import torch
from maskshards.train.losses import point_sums_triton as kernels
from maskshards.train.losses.point_sampling import point_keys
from maskshards.train.losses.point_sums import PlainSampler
from maskshards.train.losses.point_sums_fused import FusedSampler
from maskshards.train.losses.settings import LossSettings
from maskshards.train.model.heads.prediction import MaskProduct, Prediction

queries, labels, width = (tile + 3 for tile in (FIRST.queries, FIRST.labels, FIRST.channels))
torch.manual_seed(0)
owner_map = torch.randint(0, labels, (1, 9, 7), dtype=torch.int16)
keys = torch.from_numpy(point_keys(7, [3], 1, 1))[None]
product = MaskProduct(torch.randn(1, 1, queries, width), torch.randn(1, width, 5, 6))
left_out = Prediction(torch.zeros(1, queries, 1), None, product)
whole = Prediction(left_out.class_logits, left_out.mask_logits)
inputs = owner_map, labels, keys, LossSettings(num_points=45)
wanted = PlainSampler(*inputs).pair_sums([whole])
found = FusedSampler(*inputs).pair_sums([GIVEN])
for field in wanted.__dataclass_fields__:
    exact = getattr(wanted, field)
    assert (getattr(found, field) - exact).abs().max() < 1e-5 * exact.abs().max(), field
print("equal")
"""


@pytest.mark.parametrize(("tile", "given"), [("OF_MASKS", "whole"), ("OF_FEATURES", "left_out")])
def test_costs_of_more_than_one_tile(tile: str, given: str) -> None:
    code = CASE.replace("FIRST", f"kernels.{tile}").replace("GIVEN", given)
    done = forked.run(["-c", code], env={**os.environ, "TRITON_INTERPRET": "1"})
    skip_old_interpreter(done.stderr)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == ["equal"]
