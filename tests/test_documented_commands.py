"""Every command that README, docs and recipes show is one that the programs take, to the last option."""

import argparse
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from preprocess.arguments import parser as preprocess_parser
from shards.__main__ import COMMANDS as SHARDS_COMMANDS
from train import bench, export, predict
from train.config import load_config, merge

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("configs/*.yaml"))]
COMMAND = re.compile(
    r"(?:^|[\s\"'/])(?:python|torchrun\b[^`\n]*?) -m ((?:preprocess|shards|train)[.\w]*)( [^\n]*)?$"
)


def _commands(page):
    """(program, words) of each command on a page; those with gaps to fill (`...`, `[...]`) are left out."""
    text = re.sub(r"^# ?", "", page.read_text(), flags=re.M) if page.suffix == ".yaml" else page.read_text()
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        inline = "`" in line
        for piece in line.split("`" if inline else '"'):
            found = COMMAND.search(piece)
            if not found or re.search(r"\.\.\.|[\[\]]\w|COMMAND|key=value|--help", piece.replace("=[", "=")):
                continue
            words = shlex.split(re.sub(r"\$\{?\w+\}?", "1", found[2] or ""), comments=True)
            if inline and len([word for word in words if not word.startswith("-")]) < 2:
                continue  # a sentence names the program
            yield found[1], words


SHOWN = [
    pytest.param(program, words, id=f"{page.relative_to(ROOT)}: {program} {' '.join(words)}"[:120])
    for page in PAGES
    for program, words in _commands(page)
]


def _accept(program, words):
    """Parse `words` as the program would, without doing anything; True if it takes them."""
    if program == "preprocess":
        preprocess_parser().parse_args(words)
    elif program == "shards":
        parser = argparse.ArgumentParser()
        import_module(SHARDS_COMMANDS[words[0]][0]).add_arguments(parser)
        parser.add_argument("--json", action="store_true")
        parser.parse_args(words[1:])
    elif program == "train":
        load_config(words)
    elif program == "train.predict":
        merge({}, predict.parse(words)[1])
    elif program == "train.export":
        merge({}, export.parse(words).overrides)
    elif program == "train.bench":
        load_config(bench.parse(words)[1])
    else:
        return False
    return True


@pytest.mark.parametrize(("program", "words"), SHOWN)
def test_shown_command_is_one_that_the_program_takes(program, words, monkeypatch):
    monkeypatch.chdir(ROOT)  # recipes are named from here
    assert _accept(program, words)


def test_pages_show_commands_of_every_program():
    assert {"preprocess", "shards", "train", "train.predict"} <= {shown.values[0] for shown in SHOWN}
    assert len(SHOWN) > 15


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("preprocess", ["build", "--dataset", "folder", "--rot", "x"]),
        ("shards", ["verify", "x", "--fast"]),
        ("train", ["config=configs/demo.yaml", "datasets.root=x", "output_dir=y", "optimiser.lr=1"]),
        ("train.predict", ["checkpoint=x", "inputs=y", "output_dir=z", "eval.tta=true"]),
    ],
)
def test_a_wrong_word_would_be_found(program, words, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises((SystemExit, ValueError)):
        _accept(program, words)
