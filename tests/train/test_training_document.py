"""The commands of docs/training.md and docs/scale.md are read by the parser which reads them for a user."""

import re
import shlex
from pathlib import Path

import pytest

from maskshards.train.config.checks import check_config
from maskshards.train.config.load import load_config

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
SCALE = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", TEXT + SCALE, re.DOTALL)

# Pieces of messages that the code puts together, or that the system says.
FILLED_IN = [
    "datasets.root has no default",
    "value 255 is void unless said otherwise, and it is also class 255",  # a number of the data set's
    "no manifest.json", "is a pipe", "is a device", "No space left on device",
    "another run is writing here (process",
]  # fmt: skip


def commands() -> list[list[str]]:
    """Arguments of each `maskshards train` command in the documents."""
    lines = "".join(BLOCKS).replace("\\\n", " ").splitlines()
    found = [shlex.split(line) for line in lines if "maskshards train " in line]
    return [words[words.index("train") + 1 :] for words in found]


def test_the_document_has_commands() -> None:
    assert len(commands()) >= 6


@pytest.mark.parametrize("arguments", commands(), ids=lambda words: words[1])
def test_each_command_is_a_good_config(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = load_config(arguments)
    check_config(config)
    assert config.output_dir is not None


def test_keys_named_in_the_text_exist() -> None:
    from maskshards.train.config.load import known_keys

    known = set(known_keys())
    sections = {key.split(".")[0] for key in known if "." in key}
    section = "|".join(sorted(sections))
    named = set(re.findall(rf"`((?:{section})\.[a-z_.]+)", TEXT))
    named = {name.rstrip(".") for name in named}
    assert len(named) > 10
    assert {name for name in named if name not in known and not name.startswith("train.")} == set()


def test_each_message_of_the_troubleshooting_page_is_one_that_the_code_gives() -> None:
    rooms = [path for room in ("train", "shards", "preprocess") for path in (ROOT / room).rglob("*.py")]
    code = "\n".join(path.read_text(encoding="utf-8") for path in rooms)
    joined = re.sub(r"""["']\s*\n\s*f?["']""", "", code)
    said = re.sub(r"\{[^{}]*\}", "{}", joined)
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \| ", page, re.MULTILINE)
    assert len(rows) > 40
    phrases = [phrase for row in rows for phrase in re.findall(r"`([^`]+)`", row)]
    # A word in capitals stands for what the message fills in.
    pieces = [piece.strip(" '():;") for one in phrases for piece in re.split(r"\b[A-Z]+\b|\.\.\.", one)]
    absent = [piece for piece in pieces if len(piece) > 7 and piece not in said]
    assert absent == FILLED_IN
