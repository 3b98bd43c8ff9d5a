"""The architecture as a test: who may import whom, what stays free of torch, and that modules have tests."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("preprocess", "shards", "train")
FORBIDDEN = {"shards": {"preprocess", "train"}, "preprocess": {"train", "torch"}, "train": {"preprocess"}}


def _modules(room):
    return sorted((ROOT / room).rglob("*.py"))


def _imports(path):
    """(line, top-level name) of every import anywhere in a module, function bodies included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.lineno, node.module.split(".")[0]


@pytest.mark.parametrize("room", ROOMS)
def test_imports_follow_the_law(room):
    assert _modules(room)
    breaches = [
        f"{path.relative_to(ROOT)}:{line}: {room} imports {name}"
        for path in _modules(room)
        for line, name in _imports(path)
        if name in FORBIDDEN[room]
    ]
    assert breaches == []


@pytest.mark.parametrize("room", ROOMS)
def test_every_module_has_its_test(room):
    missing = []
    for path in _modules(room):
        relative = path.relative_to(ROOT)
        mirror = ROOT / "tests" / relative.parent / f"test_{relative.name}"
        if path.name not in ("__init__.py", "__main__.py") and not mirror.exists():
            missing.append(str(mirror.relative_to(ROOT)))
    assert missing == []


@pytest.mark.parametrize("command", [["preprocess", "build", "--help"], ["preprocess", "verify", "--help"]])
def test_building_shards_never_loads_torch(command):
    program = f"import runpy, sys; sys.argv = {['x', *command[1:]]!r}\n"
    program += (
        f"try:\n    runpy.run_module({command[0]!r}, run_name='__main__')\nexcept SystemExit:\n    pass\n"
    )
    program += "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("room", ROOMS)
def test_package_files_hold_only_a_docstring(room):
    for path in (ROOT / room).rglob("__init__.py"):
        body = ast.parse(path.read_text()).body
        assert all(isinstance(node, ast.Expr) for node in body), path
