"""Triton's compiler for NVIDIA chips, which needs none: imported by programs of their own."""

from typing import Any

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile


def compiled(kernel: Any, types: dict[str, str], fixed: dict[str, Any], chip: int, options: Any) -> Any:
    """What Triton makes of `kernel` for `chip` (90: Hopper), its constexpr arguments as in `fixed`."""
    types = types | dict.fromkeys(fixed, "constexpr")
    ordered = {name: types[name] for name in kernel.arg_names}
    constants = {(kernel.arg_names.index(name),): value for name, value in fixed.items()}
    source = ASTSource(kernel, ordered, constants)
    return compile(source, target=GPUTarget("cuda", chip, 32), options=options)
