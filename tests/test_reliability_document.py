"""docs/reliability.md names the test of each promise; a name that no test has is an empty promise."""

import re
from pathlib import Path

HERE = Path(__file__).parent
TESTS: dict[str, set[str]] = {}  # of files by name, whichever folder they lie in
for path in HERE.rglob("test_*.py"):
    TESTS.setdefault(path.name, set()).update(re.findall(r"def (test_\w+)", path.read_text()))


def test_every_test_that_is_named_exists():
    text = (HERE.parent / "docs" / "reliability.md").read_text()
    names = re.findall(r"`(?:tests/\w+/)?(test_\w+\.py)?::(test_\w+)`", text)
    assert len(names) > 80
    anywhere = set().union(*TESTS.values())
    assert [name for file, name in names if name not in (TESTS.get(file, set()) if file else anywhere)] == []
    assert set(re.findall(r"test_\w+\.py", text)) <= set(TESTS)
