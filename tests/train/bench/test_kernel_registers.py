"""All Triton kernels go through NVIDIA's assembler for chips that are not there: no more than a few
registers spill, and what is said to have no atomics has none.
"""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.train.model.interpreted import run

pytest.importorskip("triton")

FEW_BYTES = 32  # eight registers; which kernels spill any depends on Triton's version

LOOK = r"""
import json, re
from maskshards.train.bench import kernel_registers as look

every, chips, found, seen = EVERY, CHIPS, {}, []
for case in look.cases():
    if every or case.kernel not in seen:
        seen.append(case.kernel)
        for chip in chips:
            program = look.compiled(case, chip)
            used = look.usage(program)
            ptx = program.asm["ptx"]
            found[f"{case.name}/sm{chip}"] = {
                "registers": used.registers, "stack": used.stack, "size": len(program.asm["cubin"]),
                "atomics": bool(re.search(r"\b(atom|red)\.", ptx)), "may": case.atomics,
            }
print(json.dumps(found))
"""


def looked(every: bool, chips: tuple[int, ...], cache: Path) -> dict[str, dict[str, Any]]:
    code = LOOK.replace("EVERY", str(every)).replace("CHIPS", str(chips))
    return dict(run(code, TRITON_CACHE_DIR=str(cache), TRITON_INTERPRET="0"))


def check(found: dict[str, dict[str, Any]]) -> None:
    for name, figures in found.items():
        assert figures["stack"] <= FEW_BYTES, name
        assert 16 <= figures["registers"] <= 255, name
        assert figures["size"] > 1000, name
        assert figures["may"] or not figures["atomics"], name


def test_each_kernel_compiles_for_hopper_without_one(tmp_path: Path) -> None:
    found = looked(False, (90,), tmp_path)
    assert len(found) == 17
    check(found)


@pytest.mark.slow
def test_every_case_compiles_for_three_chips_without_spills(tmp_path: Path) -> None:
    found = looked(True, (80, 90, 100), tmp_path)
    assert len(found) == 3 * 36
    check(found)


def test_the_table_has_a_row_a_kernel_and_a_column_a_chip(monkeypatch: pytest.MonkeyPatch) -> None:
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("interpreted functions are not compiled")
    from maskshards.train.bench import kernel_registers

    used = {80: kernel_registers.Usage(40, 0, 0), 90: kernel_registers.Usage(255, 16, 0)}
    monkeypatch.setattr(kernel_registers, "compiled", lambda case, chip: chip)
    monkeypatch.setattr(kernel_registers, "usage", used.get)
    chosen = kernel_registers.cases()[:1]
    lines = kernel_registers.table(chosen, (80, 90)).splitlines()
    assert lines == [
        "| kernel | sm_80 | sm_90 |",
        "|---|---|---|",
        f"| {chosen[0].name} | 40 | 255, 16 B spilled |",
    ]
