"""Runs a test file's cases where Triton interprets its kernels, and kernels through Triton's compiler.

Both need a process of their own: the interpreter must be chosen before Triton is imported.
"""

import json
import os
from importlib.metadata import version
from typing import Any

import pytest

from tests import forked

TOO_NEW_NUMPY = ("only 0-dimensional arrays can be converted", "Conversion of an array with ndim > 0")


def run(code: str, **environment: str) -> Any:
    """The JSON value that `code` prints last."""
    done = forked.run(["-c", code], env={**os.environ, **environment})
    skip_old_interpreter(done.stderr)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def skip_old_interpreter(output: str) -> None:
    """Skip the test where a process said that Triton's interpreter, of before 3.7, met a NumPy that no longer
    turns one-element arrays into numbers, or says that it will not.
    """
    old = tuple(map(int, version("triton").split(".")[:2])) < (3, 7)
    if old and any(word in output for word in TOO_NEW_NUMPY):
        pytest.skip(f"the interpreter of Triton {version('triton')} cannot read numbers of this NumPy")


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
