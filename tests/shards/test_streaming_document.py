"""The code in docs/streaming.md runs as it is printed."""

import re
import runpy
from pathlib import Path

import pytest

TEXT = (Path(__file__).parents[2] / "docs" / "streaming.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture(scope="module")
def folder(make_split):
    return str(make_split("documented", [7, 6]).folder)


def test_the_document_has_code():
    assert len(BLOCKS) >= 6


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_each_block_runs(number, folder, capsys, tmp_path):
    (tmp_path / "block.py").write_text(BLOCKS[number])
    runpy.run_path(str(tmp_path / "block.py"), {"SPLIT": folder})
    assert capsys.readouterr().out
