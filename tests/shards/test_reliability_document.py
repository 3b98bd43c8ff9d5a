"""docs/reliability.md names the test of each promise; a name that no test has is an empty promise."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def named_below(folder: str) -> dict[str, list[str]]:
    """The names of the tests in each file below tests/FOLDER, by its path from there."""
    place = ROOT / "tests" / folder
    return {
        str(path.relative_to(place)): re.findall(r"def (test_\w+)", path.read_text())
        for path in place.rglob("test_*.py")
    }


def test_every_test_that_is_named_exists():
    text = (ROOT / "docs" / "reliability.md").read_text()
    start = text.index("## Training")
    end = text.index("\n## ", start)
    for folder, part in {"train": text[start:end], "shards": text[:start] + text[end:]}.items():
        tests = named_below(folder)
        names = re.findall(r"`((?:\w+/)?test_\w+\.py)?::(test_\w+)`", part)
        assert len(names) > {"train": 25, "shards": 50}[folder]
        assert part.count("::test_") == len(names)
        anywhere = {name for own in tests.values() for name in own}
        missing = [(f, name) for f, name in names if name not in (tests.get(f, []) if f else anywhere)]
        assert missing == []
    nearby = {path.name for path in ROOT.glob("tests/**/test_*.py")}
    assert set(re.findall(r"test_\w+\.py", text)) <= nearby
