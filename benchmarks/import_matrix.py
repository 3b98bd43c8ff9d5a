"""Who imports whom, as a picture: python benchmarks/import_matrix.py CHECKOUT OUT.svg

One row and one column a module, those of a folder together and by name; a mark where the row imports the
column. Lines part the folders, which stand behind those that they import. The line that is printed counts.
"""

import ast
import sys
from pathlib import Path

PACKAGES = ("shards", "preprocess", "train")
CELL_PX, MARGIN_PX = 4, 8


def modules_of(root):
    """{dotted name without `maskshards`: path} of all modules, those of one folder together."""
    files = [path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]
    names = {path: ".".join(path.relative_to(root).with_suffix("").parts) for path in files}
    return {name: path for path, name in names.items() if path.name != "__init__.py"}


def imports_of(path, known):
    """Known modules that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.removeprefix("maskshards.") for name in names} & known
    return found


def folder_of(name):
    return name.rpartition(".")[0]


def folders_behind_what_they_import(arrows):
    """Folders, the one that imports the fewest of those not yet placed next."""
    needs = {folder_of(name): set() for name in arrows}
    for name, targets in arrows.items():
        needs[folder_of(name)] |= {folder_of(one) for one in targets} - {folder_of(name)}
    placed = []
    while len(placed) < len(needs):
        waiting = sorted(needs.keys() - set(placed))
        placed.append(min(waiting, key=lambda folder: (len(needs[folder] - set(placed)), folder)))
    return placed


def picture(root):
    """(SVG text, one line of figures)."""
    modules = modules_of(root)
    arrows = {name: imports_of(path, set(modules)) for name, path in modules.items()}
    rooms = folders_behind_what_they_import(arrows)
    order = {
        name: place
        for place, name in enumerate(sorted(modules, key=lambda one: (rooms.index(folder_of(one)), one)))
    }
    marks = [(order[a], order[b]) for a, targets in arrows.items() for b in targets]
    side = len(order) * CELL_PX + 2 * MARGIN_PX
    at = [MARGIN_PX + CELL_PX * place for place in range(len(order) + 1)]
    folders = [folder_of(name) for name in order]
    cuts = [place for place in range(1, len(order)) if folders[place] != folders[place - 1]]
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {side} {side}" width="{side}">']
    parts.append(f'<rect width="{side}" height="{side}" fill="#fff"/>')
    for cut in cuts:
        parts.append(f'<path d="M{at[cut]} {at[0]}V{at[-1]}M{at[0]} {at[cut]}H{at[-1]}" stroke="#ddd"/>')
    for row, column in marks:
        parts.append(
            f'<rect x="{at[column]}" y="{at[row]}" width="{CELL_PX}" height="{CELL_PX}" fill="#1f5fa8"/>'
        )
    fullest = max(set(folders), key=folders.count)
    line = (
        f"{len(order)} modules in {len(set(folders))} folders, {len(marks)} imports; "
        f"the fullest folder is {fullest} with {folders.count(fullest)} modules"
    )
    return "\n".join([*parts, "</svg>\n"]), line


if __name__ == "__main__":
    drawn, told = picture(Path(sys.argv[1]))
    Path(sys.argv[2]).write_text(drawn)
    print(told)
