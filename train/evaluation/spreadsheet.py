"""Names of classes and images as cells of a CSV file, which people open in a spreadsheet."""

from __future__ import annotations

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet takes for the beginning of a formula


def cell_text(name: str) -> str:
    """`name`, after an apostrophe where a spreadsheet would compute it or run what it says.

    Only the apostrophe is added: `cell[1:]` of a cell that begins with one is the name.
    """
    return f"'{name}" if name.startswith((*FORMULA, "'")) else name
