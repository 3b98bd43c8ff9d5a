"""Runs a test file's cases where Triton interprets its kernels, and kernels through Triton's compiler.

Both need a process of their own: the interpreter must be chosen before Triton is imported.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]


def run(code: str, **environment: str) -> Any:
    """The JSON value that `code` prints last."""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        cwd=ROOT, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def cases_of(file: str, **more: str) -> dict[str, Any]:
    """`errors(name)` of every name in CASES of a test file, and for each of `more` what its call answers."""
    calls = "".join(f"found[{name!r}] = cases.{call};" for name, call in more.items())
    code = (
        "import importlib.util, json;"
        f"spec = importlib.util.spec_from_file_location('cases', {file!r});"
        "cases = importlib.util.module_from_spec(spec); spec.loader.exec_module(cases);"
        f"found = {{name: cases.errors(name) for name in cases.CASES}}; {calls} print(json.dumps(found))"
    )
    return dict(run(code, TRITON_INTERPRET="1"))
