"""Registers of each Triton kernel: `python -m maskshards.train.bench.kernel_registers`.

What NVIDIA's assembler makes of them, for chips that are not there.

Every kernel is compiled at the sizes of a training step (ViT-L, 512 px, 150 classes, bfloat16) for sm_80,
sm_90 and sm_100, and its registers a thread and bytes of stack, which is where spilled registers go, are read
off with the tools that Triton brings. Needs no GPU. TRITON_INTERPRET must not be set.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from maskshards.train.losses import point_sums_triton as points
from maskshards.train.model.ops.kernels import (
    deformable,
    deformable_sorted,
    depthwise,
    group_norm,
    upsample2x,
)

CHIPS = (80, 90, 100)  # A100; H100 and H200; B200
LOW = "value grad_out maps grad out tokens vectors".split()  # arguments that hold 16-bit numbers
INTEGERS = "table counts cursor starts of_query".split()
LONGS = "keys images wanted chosen".split()
NUMBERS = (
    "num_queries num_places num_rows num_points num_chosen num_candidates num_labels tiles chunks "
    "chunk_places total entries height width together image_stride vector_stride place_stride points_a_share "
    "label_height label_width"
).split()

ODD = ("tiles", "num_labels")  # the other numbers are multiples of 16 in such a step


@dataclass(frozen=True)
class Case:
    """One kernel as a step launches it: constants, options, and types that differ from the usual ones."""

    name: str
    kernel: Any
    fixed: dict[str, Any]
    options: dict[str, Any]
    types: dict[str, str] = field(default_factory=dict)
    atomics: bool = False  # whether it may add to what other programs add to


@dataclass(frozen=True)
class Usage:
    """What one program needs: registers a thread, bytes of stack a thread, bytes of shared memory."""

    registers: int
    stack: int
    shared: int


def cases() -> list[Case]:
    """All kernels, at both widths where a step has two."""
    return [*_attentions(), *_norms(), *_stencils(), *_losses()]


def _attentions() -> list[Case]:
    found = []
    for width in (16, 128):
        block_q, block_d = deformable.block_sizes(width)
        sizes = {"M": 16, "D": width, "L": 3, "P": 4, "BLOCK_Q": block_q, "BLOCK_D": block_d}
        for first, layout in ((False, "by query"), (True, "by point")):
            name, ours = f"attention, head {width}, {layout}", sizes | {"POINTS_FIRST": first}
            options = deformable.OPTIONS
            found.append(Case(f"{name}: forward", deformable._forward, ours, options))
            for adds, ending in ((True, ""), (False, " without values")):
                more = ours | {"ADD_VALUES": adds}
                title = f"{name}: backward{ending}"
                found.append(Case(title, deformable._backward, more, options, atomics=adds))
    for first, layout in ((False, "by query"), (True, "by point")):
        sort = {"M": 16, "L": 3, "P": 4, "BLOCK": deformable_sorted.BLOCK_POINTS, "POINTS_FIRST": first}
        for kernel in (deformable_sorted._count, deformable_sorted._fill):
            name = f"sorted gradient, {layout}: {kernel.__name__[1:]}"
            found.append(Case(name, kernel, sort, deformable_sorted.SORT_OPTIONS, atomics=True))
    for width in (16, 128):
        gather = {"M": 16, "D": width, "BLOCK_D": width, "BLOCK_S": deformable_sorted.BLOCK_SHARES}
        name = f"sorted gradient, head {width}: gather"
        found.append(Case(name, deformable_sorted._gather, gather, deformable_sorted.GATHER_OPTIONS))
    return found


def _norms() -> list[Case]:
    found = []
    for width in (256, 2048):
        each = width // 32
        sizes = {"G": 32, "D": each, **group_norm.block_sizes(each, 32)}
        for kernel in (group_norm._moments, group_norm._scale, group_norm._sums, group_norm._input_gradient):
            name = f"group norm, {width}: {kernel.__name__[1:].replace('_', ' ')}"
            found.append(Case(name, kernel, sizes, group_norm.OPTIONS))
    combine = {"D": 8, "BLOCK_N": group_norm.CHUNKS_AT_ONCE}
    options, types = group_norm.OPTIONS, {"eps": "fp32"}
    return [*found, Case("group norm: combine", group_norm._combine, combine, options, types)]


def _stencils() -> list[Case]:
    block_c = depthwise.channel_block(256)
    sizes = {"C": 256, "L": 3, "BLOCK_C": block_c}
    stencil = sizes | {"BLOCK_R": depthwise.NUMBERS_PER_TILE // block_c, "HAS_BIAS": True}
    summed = sizes | {"BLOCK_R": depthwise.SUMMED_PER_TILE // block_c}
    doubled, options = {"BLOCK": upsample2x.BLOCK}, upsample2x.OPTIONS
    return [
        Case("doubled map, channels-last: gradient", upsample2x._gather, doubled, options),
        Case("depthwise stencil", depthwise._stencil, stencil, depthwise.OPTIONS),
        Case("depthwise stencil: tap sums", depthwise._tap_sums, summed, depthwise.OPTIONS),
    ]


def _losses() -> list[Case]:
    rows = {"VOID": 255, "IGNORE_VOID": True, "BLOCK_P": points.BLOCK_POINTS}
    types = {"owner_map": "*i16", "out": "*fp32", "grad": "*fp32"}
    work = (
        (points.magnitudes, {"BLOCK_P": points.BLOCK_POINTS}, False),
        (points.row_sums, rows, False), (points.row_gradients, rows, True),
    )  # fmt: skip
    others = [
        Case(f"loss: {kernel.__name__.replace('_', ' ')}", kernel, fixed, points.OPTIONS, types, atomics)
        for kernel, fixed, atomics in work
    ]
    of_features = (
        _costs(points.OF_FEATURES, f", of {width} features", width, types) for width in (256, 2048)
    )
    return [_costs(points.OF_MASKS, "", 100, types), *of_features, *others]


def _costs(tile: points.Tile, ending: str, channels: int, types: dict[str, str]) -> Case:
    sizes = {
        "Q": 100, "C": channels, "VOID": 255, "IGNORE_VOID": True, "OF_FEATURES": tile is points.OF_FEATURES,
        "BLOCK_Q": tile.queries, "BLOCK_P": tile.points, "BLOCK_K": tile.labels, "BLOCK_C": tile.channels,
        "channel_stride": 1, "WIDENED": False,
    }  # fmt: skip
    options = points.OPTIONS | {"num_warps": tile.warps}
    return Case(f"loss: cost sums{ending}", points.cost_sums, sizes, options, types)


def compiled(case: Case, chip: int) -> Any:
    """What Triton makes of a case for `chip` (90: Hopper); what is aligned in a step is aligned here."""
    types = {name: _usual_type(name) for name in case.kernel.arg_names} | case.types
    types |= dict.fromkeys(case.fixed, "constexpr")
    ordered = {name: types[name] for name in case.kernel.arg_names}
    constants = {(case.kernel.arg_names.index(name),): value for name, value in case.fixed.items()}
    aligned: dict[Any, Any] = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(ordered)
        if ordered[name].startswith("*") or (ordered[name] == "i32" and name not in ODD)
    }
    source = ASTSource(case.kernel, ordered, constants, aligned)
    return compile(source, target=GPUTarget("cuda", chip, 32), options=case.options)


def _usual_type(name: str) -> str:
    if name in NUMBERS:
        return "i32"
    return "*bf16" if name in LOW else "*i32" if name in INTEGERS else "*i64" if name in LONGS else "*fp32"


def usage(program: Any) -> Usage:
    """Read off a compiled program; OSError where Triton's cuobjdump is missing or cannot read it."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(program.asm["cubin"])
        file.flush()
        done = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, timeout=60)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", done.stdout + done.stderr)
    if found is None:
        raise OSError(f"{tool} said nothing of registers: {(done.stdout + done.stderr)[:300]!r}")
    return Usage(*map(int, found.groups()))


def table(chosen: Sequence[Case], chips: Sequence[int]) -> str:
    """Markdown: registers a thread on each chip, and bytes of stack where there are any."""
    heads = " | ".join(f"sm_{chip}" for chip in chips)
    lines = [f"| kernel | {heads} |", "|---" * (len(chips) + 1) + "|"]
    for case in chosen:
        cells = []
        for chip in chips:
            used = usage(compiled(case, chip))
            cells.append(f"{used.registers}, {used.stack} B spilled" if used.stack else f"{used.registers}")
        lines.append(f"| {case.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", metavar="WORD", help="kernels with this word in their name")
    parser.add_argument("--chips", type=int, nargs="+", default=CHIPS, metavar="N", help="80, 90, 100")
    options = parser.parse_args(argv)
    chosen = [case for case in cases() if options.only in case.name]
    sys.stdout.write(f"Triton {triton.__version__}\n\n{table(chosen, options.chips)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
