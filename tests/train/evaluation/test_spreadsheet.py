"""Cells of CSV files that no spreadsheet takes for formulas, and the names behind them."""

import pytest

from maskshards.train.evaluation.spreadsheet import cell_text


@pytest.mark.parametrize("name", ["=cmd|' /C calc'!A0", "@SUM(1)", "+1", "-", "\t=1", "\r=1", "'quoted"])
def test_formulas_become_text_and_names_come_back(name):
    cell = cell_text(name)
    assert not cell.startswith(("=", "@", "+", "-", "\t", "\r"))
    assert cell[1:] == name


@pytest.mark.parametrize("name", ["", "wall", "traffic-sign", "a = b", "тур", "3"])
def test_other_names_stay(name):
    assert cell_text(name) == name
