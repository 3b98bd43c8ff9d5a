"""How many small faults in the core modules the tests of these modules see.

    python benchmarks/mutation.py [MODULE ...] [--sample 60] [--seed 0] [--json mutation.json]

MODULE is a name of TARGETS; without one, all of them. Each mutant is one change in one place of a module's
syntax tree: a comparison or an operator exchanged, a number or truth value changed, a condition negated, a
statement left out, a returned value replaced by None. Strings, annotations, decorators and what is raised are
left alone. A copy of the checkout gets the change, and the module's own test files run in it until the first
failure. What the tests import without the module is loaded once, and each run forked from there. hypothesis
draws the same examples for each mutant and looks for no smaller ones. A run of more than ten times the time
of the unchanged one counts as caught, in a column of its own. Prints a Markdown table and the survivors.
"""

from __future__ import annotations

import argparse
import ast
import gc
import importlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import Phase

ROOT = Path(__file__).resolve().parents[1]
MODULES = (
    "shards/order/order.py", "shards/format/rle.py", "shards/format/tar.py", "shards/format/manifest.py",
    "train/losses/matched_loss.py", "train/optim/lr_schedule.py", "train/trainer/resume.py",
    "shards/augment/crop.py", "shards/augment/targets.py", "shards/format/record.py",
    "train/evaluation/metrics.py", "train/checkpoint/checkpoint.py",
)  # fmt: skip
MORE_TESTS = {"matched_loss": ["tests/train/losses/test_matches.py"]}
TARGETS = {
    path.stem: (str(path), [f"tests/{path.parent}/test_{path.name}", *MORE_TESTS.get(path.stem, ())])
    for path in map(Path, MODULES)
}
PRELOADED = (
    "numpy", "torch", "pyarrow.parquet", "zstandard", "scipy.optimize", "omegaconf", "safetensors.torch",
    "hypothesis.extra.numpy", "_hypothesis_pytestplugin", "PIL.Image", "google_crc32c",
    "torch.utils.tensorboard", "transformers.models.mask2former.modeling_mask2former",
    "transformers.models.dinov3_vit.modeling_dinov3_vit",
)  # fmt: skip
RELOADED = "ignore::pytest.PytestAssertRewriteWarning"  # the plugin that is loaded already
PATIENCE, LEAST_S = 10, 5  # times the unchanged run, and seconds, that a mutant may compute
WAIT_S = 120.0  # that it may take in all, at least
MOST_MEMORY = 12 << 30  # bytes of address space: a changed size may ask for all there is
COMPARED = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
OPERATED = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr, ast.BitXor: ast.BitOr, ast.Pow: ast.Mult,
}  # fmt: skip


@dataclass
class Result:
    """What became of the mutants of one module."""

    name: str
    possible: int
    caught: int = 0
    hung: int = 0
    survivors: list[str] = field(default_factory=list)

    @property
    def tried(self) -> int:
        return self.caught + self.hung + len(self.survivors)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("modules", nargs="*", help=", ".join(TARGETS))
    parser.add_argument("--sample", type=int, default=60, help="mutants of a module, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write every result there")
    args = parser.parse_args(argv)
    if unknown := sorted(set(args.modules) - set(TARGETS)):
        parser.error(f"no such module: {', '.join(unknown)}; known are {', '.join(TARGETS)}")
    for name in PRELOADED:
        importlib.import_module(name)
    hypothesis.settings.register_profile(
        "mutants", deadline=None, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate]
    )
    results = []
    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder) / "checkout"
        copy_checkout(checkout)
        sys.path[:0] = [str(checkout / "src"), str(checkout)]
        sys.dont_write_bytecode = True
        for name in args.modules or TARGETS:
            results.append(try_module(checkout, name, args.sample, args.seed))
            if args.json:
                args.json.write_text(json.dumps([asdict(result) for result in results], indent=1))
    gc.unfreeze()  # or Triton's bindings complain of leaks at the end
    sys.stdout.write(table(results) + "\n")
    return 0


def copy_checkout(target: Path) -> None:
    """What git tracks, links included, as it lies in the working tree."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True)
    for name in filter(None, listed.stdout.split("\0")):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).exists():
            shutil.copy2(ROOT / name, target / name, follow_symlinks=False)


def try_module(checkout: Path, name: str, sample: int, seed: int) -> Result:
    """Sample the mutants of one module and run its tests on each."""
    path, tests = TARGETS[name]
    source = (ROOT / path).read_text(encoding="utf-8")
    possible = places(ast.parse(source))
    result = Result(name, len(possible))
    preload(checkout, path, tests)
    (checkout / path).write_text(ast.unparse(ast.parse(source)), encoding="utf-8")  # as mutants are written
    began = time.monotonic(), children_s()
    if run_tests(checkout, tests, 3600, 3600) != 0:
        raise SystemExit(f"{', '.join(tests)} fail on the unchanged module")
    compute_s = max(LEAST_S, int(PATIENCE * (children_s() - began[1])))
    wait_s = max(WAIT_S, PATIENCE * (time.monotonic() - began[0]))
    chosen = random.Random(seed).sample(possible, min(sample, len(possible)))
    for number, place in enumerate(chosen, start=1):
        what, changed = mutant(source, *place)
        (checkout / path).write_text(changed, encoding="utf-8")
        status = run_tests(checkout, tests, compute_s, wait_s)
        if status == 0:
            result.survivors.append(what)
        elif status is None:
            result.hung += 1
        else:
            result.caught += 1
        verdict = {0: "SURVIVED", None: "hung"}.get(status, "caught")
        sys.stderr.write(f"{name} {number}/{len(chosen)} {verdict}: {what}\n")
    (checkout / path).write_text(source, encoding="utf-8")
    return result


def preload(checkout: Path, path: str, tests: list[str]) -> None:
    """Import what the tests take from the package, and let go of the module and of all that imports it."""
    for test in tests:
        for file in (checkout / test, *(folder / "conftest.py" for folder in (checkout / test).parents)):
            for name in imported(file) if file.exists() else ():
                if (checkout / f"{name.partition('.')[2].replace('.', '/')}.py").exists():
                    importlib.import_module(name)  # else it stands in a module
    uses = {
        name: imported(Path(module.__file__))
        for name, module in sys.modules.items()
        if name.startswith("maskshards.") and module.__file__
    }
    changing, before = {"maskshards." + path.removesuffix(".py").replace("/", ".")}, 0
    while len(changing) > before:
        before = len(changing)
        changing |= {name for name, used in uses.items() if used & changing}
    gc.freeze()  # no look for garbage in a fork goes through what is loaded here
    for name in changing & sys.modules.keys():
        parent, _, own = name.rpartition(".")
        del sys.modules[name]
        if parent in sys.modules:
            vars(sys.modules[parent]).pop(own, None)


def imported(file: Path) -> set[str]:
    """Names of the package's modules, and of what stands in them, that a file imports anywhere."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name for name in names if name.startswith("maskshards.")}


def children_s() -> float:
    """Processor time of all processes that were started and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run_tests(checkout: Path, tests: list[str], compute_s: int, wait_s: float) -> int | None:
    """pytest's exit status in a fork of this process, or None where it took too long."""
    child = os.fork()
    if child == 0:
        os.setsid()  # its own group, to end what it starts too
        resource.setrlimit(resource.RLIMIT_CPU, (compute_s, compute_s))
        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
        os._exit(in_child(checkout, tests))
    since = time.monotonic()
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return None if code in (-signal.SIGXCPU, -signal.SIGKILL) else code
        if time.monotonic() - since > wait_s:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.05)


def in_child(checkout: Path, tests: list[str]) -> int:
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    os.chdir(checkout)
    os.environ |= {"PYTHONPATH": str(checkout / "src"), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    plugins = ["-p", "no:cacheprovider", "-p", "_hypothesis_pytestplugin", "--hypothesis-profile", "mutants"]
    return int(pytest.main(["-x", "-q", "-W", RELOADED, *plugins, *tests], [Leave()]))


class Leave:
    """A plugin that ends the process before pytest looks for garbage once more."""

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, exitstatus: int) -> None:
        os._exit(exitstatus)


def places(tree: ast.AST) -> list[tuple[int, int]]:
    """(number of the node in ast.walk's order, number of the change) for every mutation there is."""
    alone = {id(inner) for root in left_alone(tree) for inner in ast.walk(root)}
    return [
        (number, change)
        for number, node in enumerate(ast.walk(tree))
        if id(node) not in alone
        for change in range(len(changes(node)))
    ]


def left_alone(tree: ast.AST) -> Iterator[ast.AST]:
    """Annotations, decorators, what is raised, docstrings."""
    for node in ast.walk(tree):
        roots: list[ast.AST | None] = []
        if isinstance(node, ast.FunctionDef):
            roots = [*node.decorator_list, node.returns]
        elif isinstance(node, ast.ClassDef):
            roots = [*node.decorator_list]
        elif isinstance(node, ast.arg | ast.AnnAssign):
            roots = [node.annotation]
        elif isinstance(node, ast.Raise):
            roots = [node.exc, node.cause]
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            roots = [node]
        yield from filter(None, roots)


def mutant(source: str, number: int, change: int) -> tuple[str, str]:
    """(what was changed where, the changed source)."""
    tree = ast.parse(source)
    node: Any = list(ast.walk(tree))[number]
    before = ast.unparse(node).splitlines()[0]
    changes(node)[change]()
    after = ast.unparse(ast.fix_missing_locations(node)).splitlines()[0]
    return f"line {node.lineno}: {before} -> {after}", ast.unparse(tree)


def changes(node: Any) -> list[Callable[[], None]]:
    """Calls that change `node` in place, each one mutation."""
    found = []
    if isinstance(node, ast.Compare):
        found += [swap(node.ops, i, COMPARED) for i, op in enumerate(node.ops) if type(op) in COMPARED]
    elif isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in OPERATED:
        found.append(setting(node, "op", OPERATED[type(node.op)]()))
    elif isinstance(node, ast.BoolOp):
        found.append(setting(node, "op", ast.And() if isinstance(node.op, ast.Or) else ast.Or()))
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        found.append(setting(node, "value", not node.value))
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        found.append(setting(node, "value", node.value + 1))
    elif isinstance(node, ast.If | ast.While | ast.IfExp):
        found.append(setting(node, "test", ast.UnaryOp(ast.Not(), node.test)))
    elif isinstance(node, ast.Return) and node.value is not None and not is_none(node.value):
        found.append(setting(node, "value", ast.Constant(None)))
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        found.append(setting(node, "value", ast.Constant(None)))  # the call is left out
    elif isinstance(node, ast.Raise):
        found.append(turning(node, ast.Pass))
    elif isinstance(node, ast.Break):
        found.append(turning(node, ast.Continue))
    elif isinstance(node, ast.Continue):
        found.append(turning(node, ast.Break))
    return found


def is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def swap(ops: list[Any], place: int, table: dict[Any, Any]) -> Callable[[], None]:
    def change() -> None:
        ops[place] = table[type(ops[place])]()

    return change


def setting(node: ast.AST, name: str, value: object) -> Callable[[], None]:
    return lambda: setattr(node, name, value)


def turning(node: Any, kind: type[ast.stmt]) -> Callable[[], None]:
    def change() -> None:
        place = {key: getattr(node, key) for key in ("lineno", "col_offset")}
        node.__class__ = kind  # in place, so that its parent needs no look
        node.__dict__.clear()
        node.__dict__.update(place)

    return change


def table(results: list[Result]) -> str:
    lines = ["| module | possible | tried | caught | of them by time | survived | share caught |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for one in results:
        seen = one.caught + one.hung
        lines.append(
            f"| `{one.name}` | {one.possible} | {one.tried} | {seen} | {one.hung} | {len(one.survivors)} "
            f"| {100 * seen / max(1, one.tried):.0f} % |"
        )
    tried, seen = sum(one.tried for one in results), sum(one.caught + one.hung for one in results)
    hung = sum(one.hung for one in results)
    lines.append(
        f"| all | {sum(one.possible for one in results)} | {tried} | {seen} | {hung} | {tried - seen} "
        f"| {100 * seen / max(1, tried):.0f} % |"
    )
    for one in results:
        lines += ["", *(f"* `{one.name}` {what}" for what in one.survivors)] if one.survivors else []
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
