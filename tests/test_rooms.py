"""The architecture as a test: who imports whom, the order of rooms, their size, what stays free of torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("preprocess", "shards", "train")
FORBIDDEN = {"shards": {"preprocess", "train"}, "preprocess": {"train"}, "train": {"preprocess"}}
MODULES_PER_PACKAGE = 16

# Rooms of one package, lowest first: a module may import from its own room and from those before it.
ORDER = {
    "shards": (
        "errors", "batch", "process",
        "storage", "format", "order", "augment", "decode", "loading", "commands", "__main__",
    ),
    # First the facts that need no torch, which the configuration is checked against.
    "train": (
        "keys", "model.backbone.architectures", "model.heads.rules", "losses.settings",
        "config", "model.ops", "model.backbone", "checkpoint", "model.heads.prediction", "losses",
        "model.heads", "model", "capture", "evaluation", "report", "distributed", "tracking", "comparison",
        "optim", "trainer",
        "prediction", "predictor", "api", "predict",
        "export", "bench", "__main__",
    ),
}  # fmt: skip


def _modules(room):
    return sorted((ROOT / room).rglob("*.py"))


def _name(path):
    return "maskshards." + ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


EVERY = {_name(path): path for room in ROOMS for path in _modules(room)}


def _imports(path):
    """(line, full name) of every import anywhere in a module, function bodies included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{path}: imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield node.lineno, inner if inner in EVERY else node.module


def _place(module, package):
    """Position of a module's room in ORDER: the longest name there that it begins with."""
    inside = module.removeprefix(f"maskshards.{package}.")
    fits = [name for name in ORDER[package] if inside == name or inside.startswith(name + ".")]
    assert fits, f"{module} lies in no room of ORDER"
    return ORDER[package].index(max(fits, key=len))


@pytest.mark.parametrize("room", ROOMS)
def test_imports_follow_the_law(room):
    assert _modules(room)
    banned = {f"maskshards.{name}" for name in FORBIDDEN[room]}
    banned |= {"torch", "transformers"} if room == "preprocess" else set()
    breaches = [
        f"{path.relative_to(ROOT)}:{line}: {room} imports {name}"
        for path in _modules(room)
        for line, name in _imports(path)
        if any(name == one or name.startswith(one + ".") for one in banned)
    ]
    assert breaches == []


@pytest.mark.parametrize("room", ROOMS)
def test_nothing_is_imported_by_a_name_that_a_user_may_have_too(room):
    own = {*ROOMS, "configs", "tests"}
    breaches = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in _modules(room)
        for line, name in _imports(path)
        if name.split(".")[0] in own
    ]
    assert breaches == []


@pytest.mark.parametrize("package", ORDER)
def test_rooms_have_an_order_and_imports_go_one_way(package):
    breaches = [
        f"{path.relative_to(ROOT)}:{line}: imports {name}, of a later room"
        for path in _modules(package)
        for line, name in _imports(path)
        if path.name != "__init__.py"
        and name in EVERY
        and name.startswith(f"maskshards.{package}.")
        and EVERY[name].name != "__init__.py"
        and _place(name, package) > _place(_name(path), package)
    ]
    assert breaches == []


def test_no_module_is_imported_in_a_circle():
    arrows = {name: {to for _, to in _imports(path) if to in EVERY} for name, path in EVERY.items()}
    while arrows:
        free = {name for name, to in arrows.items() if not to & arrows.keys() - {name}}
        assert free, f"circles among {sorted(arrows)}"
        arrows = {name: to for name, to in arrows.items() if name not in free}


@pytest.mark.parametrize("room", ROOMS)
def test_no_package_overflows(room):
    packages = {path.parent for path in _modules(room)}
    full = {
        str(folder.relative_to(ROOT)): len(list(folder.glob("*.py"))) - 1
        for folder in packages
        if len(list(folder.glob("*.py"))) - 1 > MODULES_PER_PACKAGE
    }
    assert full == {}


@pytest.mark.parametrize("room", ROOMS)
def test_every_module_has_its_test(room):
    missing = []
    for path in _modules(room):
        relative = path.relative_to(ROOT)
        mirror = ROOT / "tests" / relative.parent / f"test_{relative.name}"
        if path.name not in ("__init__.py", "__main__.py") and not mirror.exists():
            missing.append(str(mirror.relative_to(ROOT)))
    assert missing == []


@pytest.mark.parametrize(
    "words",
    [
        *(["build", "--help"], ["verify", "--help"], ["finish", "--help"], ["scenes", "--help"]),
        *(["info", "--help"], ["check", "--help"], ["preview", "--help"], ["diff", "--help"]),
    ],
    ids=" ".join,
)
def test_building_and_inspecting_shards_never_loads_torch(words):
    program = "import sys\nfrom maskshards.cli import main\n"
    program += f"try:\n    main({words!r})\nexcept SystemExit:\n    pass\n"
    program += "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("room", ROOMS)
def test_package_files_hold_only_a_docstring(room):
    for path in (ROOT / room).rglob("__init__.py"):
        body = ast.parse(path.read_text()).body
        assert all(isinstance(node, ast.Expr) for node in body), path
