"""The commands of docs/training.md and docs/scale.md are read by the parser which reads them for a user."""

import re
import shlex
from pathlib import Path

import pytest

from train.config import load_config
from train.config_checks import check_config

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
SCALE = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", TEXT + SCALE, re.DOTALL)


def commands() -> list[list[str]]:
    """Arguments of each `-m train` command in the documents."""
    lines = "".join(BLOCKS).replace("\\\n", " ").splitlines()
    found = [shlex.split(line) for line in lines if " -m train " in line]
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
    from train.config import known_keys

    known = set(known_keys())
    sections = {key.split(".")[0] for key in known if "." in key}
    section = "|".join(sorted(sections))
    named = set(re.findall(rf"`((?:{section})\.[a-z_.]+)", TEXT))
    named = {name.rstrip(".") for name in named}
    assert len(named) > 10
    assert {name for name in named if name not in known and not name.startswith("train.")} == set()
