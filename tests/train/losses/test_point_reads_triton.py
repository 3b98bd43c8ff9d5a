"""Points that kernels draw; what is read there is tested through the sums, in test_point_sums_fused.py."""

import json
import os
from pathlib import Path

import pytest
import torch

from maskshards.train.losses.point_sampling import point_keys, random_points
from tests import forked

pytest.importorskip("triton")

POINTS = """
import json, torch, triton, triton.language as tl
from maskshards.train.losses import point_reads_triton as fused

@triton.jit
def write(keys, out, COUNT: tl.constexpr):
    number = tl.arange(0, COUNT)
    x, y = fused.points(number.to(tl.uint32), keys)
    tl.store(out + 2 * number, x)
    tl.store(out + 2 * number + 1, y)

keys, out = torch.tensor(KEYS), torch.zeros(64, 2)
write[(1,)](keys, out, COUNT=64)
print(json.dumps(out.flatten().tolist()))
"""


def test_points_are_the_plain_ones_bit_for_bit(tmp_path: Path) -> None:
    keys = torch.from_numpy(point_keys(2**40 + 1, [2**35], 1, 2))[0, 0]
    script = tmp_path / "points.py"  # Triton reads its kernels' source from files
    script.write_text(POINTS.replace("KEYS", str(keys.tolist())), encoding="utf-8")
    code = f"import runpy; runpy.run_path({str(script)!r})"
    done = forked.run(["-c", code], env={**os.environ, "TRITON_INTERPRET": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.tensor(json.loads(done.stdout.splitlines()[-1])).view(64, 2)
    assert torch.equal(found, random_points(keys, 64))
