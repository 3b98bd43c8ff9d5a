"""Runs a test file's cases where Triton interprets its kernels, and kernels through Triton's compiler.

Both need a process of their own: the interpreter must be chosen before Triton is imported.
"""

import json
import os
from typing import Any

from tests import forked


def run(code: str, **environment: str) -> Any:
    """The JSON value that `code` prints last."""
    done = forked.run(["-c", code], env={**os.environ, **environment})
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
