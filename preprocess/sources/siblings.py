"""Files that tools put beside label maps, named like them with a word behind: `a_color.png` beside `a.png`.

They have the ending of label maps and no image. A label map whose image was lost has none either, so a word
counts only where it stands behind the names of half of all label maps or more.
"""

from __future__ import annotations

import re
from collections.abc import Collection

WORD = re.compile(r"[_.-](?=[A-Za-z])")


def siblings(labels: Collection[str], images: Collection[str]) -> dict[str, str]:
    """Stem -> its word, of the label files that belong to another label file with an image."""
    paired = set(labels) & set(images)
    by_word: dict[str, list[str]] = {}
    for stem in set(labels) - paired:
        starts = (match.start() for match in reversed(list(WORD.finditer(stem))))
        start = next((start for start in starts if stem[:start] in paired), None)
        if start is not None:
            by_word.setdefault(stem[start:], []).append(stem)
    common = {word: stems for word, stems in by_word.items() if 2 * len(stems) >= len(paired)}
    return {stem: word for word, stems in common.items() for stem in stems}
