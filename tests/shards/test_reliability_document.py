"""docs/reliability.md names the test of each promise; a name that no test has is an empty promise."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = {
    path.name: re.findall(r"def (test_\w+)", path.read_text())
    for path in Path(__file__).parent.glob("test_*.py")
}


def test_every_test_that_is_named_exists():
    text = (ROOT / "docs" / "reliability.md").read_text()
    names = re.findall(r"`(test_\w+\.py)?::(test_\w+)`", text)
    assert len(names) > 50
    anywhere = {name for names in TESTS.values() for name in names}
    assert [(file, name) for file, name in names if name not in (TESTS[file] if file else anywhere)] == []
    nearby = set(TESTS) | {path.name for path in ROOT.glob("tests/*/test_*.py")}
    assert set(re.findall(r"test_\w+\.py", text)) <= nearby
