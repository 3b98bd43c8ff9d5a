"""From the values in a label map to class ids.

A `LabelRule` is data: it goes into the manifest as JSON, and `verify` reads it back from there, so the same
rule judges the build and its check. Values that the rule does not know are never guessed: they refuse the
sample, with the values named.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from maskshards.preprocess.errors import RejectedInput, SourceError
from maskshards.shards.format.rle import IGNORE, MOST_BYTE_LABELS, LabelledRuns, encode_label_map
from maskshards.shards.storage.foreign_file import read_text

UNKNOWN = -1  # in a rule's table: a value that no label map may hold
USUAL_VOID = 255
LARGEST_VALUE = 65535
MOST_MAPPING_BYTES = 4 << 20  # with a line for each of these values it has 1 MB


@dataclass(frozen=True, slots=True)
class LabelRule:
    """Which class a value of the label map stands for.

    Without a mapping: `ignore_index` is void; with `reduce_zero_label` 0 is void too and k means class k -
    1, without it k means class k. With a mapping only the listed values are known, each with its class id
    or None for void.
    """

    num_classes: int
    ignore_index: int | None = 255
    reduce_zero_label: bool = False
    mapping: tuple[tuple[int, int | None], ...] | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.num_classes < IGNORE:
            raise SourceError(f"{self.num_classes} classes: between 1 and {IGNORE - 1} are possible")
        if self.ignore_index is not None and not 0 <= self.ignore_index <= 65535:
            raise SourceError(
                f"--ignore-index is {self.ignore_index}; label maps hold values from 0 to 65535"
            )
        for value, label in self.mapping or ():
            if not 0 <= value <= 65535 or (label is not None and not 0 <= label < self.num_classes):
                raise SourceError(
                    f"label mapping: {value} -> {label}, but values lie in 0..65535 and classes in "
                    f"0..{self.num_classes - 1}"
                )

    def to_json(self) -> dict[str, Any]:
        """The rule as it stands in the manifest."""
        if self.mapping is not None:
            pairs = {str(value): label for value, label in self.mapping}
            return {"num_classes": self.num_classes, "mapping": pairs}
        return {
            "num_classes": self.num_classes,
            "ignore_index": self.ignore_index,
            "reduce_zero_label": self.reduce_zero_label,
        }

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> LabelRule:
        """The inverse of `to_json`."""
        mapping = facts.get("mapping")
        if mapping is not None:
            pairs = tuple((int(value), label) for value, label in mapping.items())
            return cls(int(facts["num_classes"]), mapping=pairs)
        return cls(int(facts["num_classes"]), facts["ignore_index"], bool(facts["reduce_zero_label"]))

    def table(self) -> np.ndarray:
        """(65536,) int32: class id, IGNORE for void, or UNKNOWN, of every value that a label map can hold."""
        table = np.full(65536, UNKNOWN, np.int32)
        if self.mapping is not None:
            for value, label in self.mapping:
                table[value] = IGNORE if label is None else label
            return table
        first = 1 if self.reduce_zero_label else 0
        table[first : first + self.num_classes] = np.arange(min(self.num_classes, 65536 - first))
        if self.reduce_zero_label:
            table[0] = IGNORE
        if self.ignore_index is not None:
            table[self.ignore_index] = IGNORE
        return table

    def apply(self, values: np.ndarray) -> np.ndarray:
        """(H, W) uint16 class ids, void as IGNORE, from a (H, W) uint8 or uint16 label map.

        RejectedInput for unknown values.
        """
        table, unknown = _lookup(self)
        found = table.take(values)
        if (found == unknown).any():
            strange = np.unique(values[found == unknown])
            shown = ", ".join(map(str, strange[:8])) + (", ..." if len(strange) > 8 else "")
            pixels = int((found == unknown).sum())
            raise RejectedInput(
                f"label values out of range: {shown} ({pixels} pixels); expected {self.describe()}"
                f"{self._hint(np.unique(values).tolist(), strange.tolist())}"
            )
        return found

    def _hint(self, present: list[int], strange: list[int]) -> str:
        """The rule that was probably meant, from the values of one label map and those it may not hold."""
        if self.mapping is not None:
            return ""
        if set(present) <= {0, 255}:
            return f". Values 0 and 255: a mask? {MASK_MAPPING}"
        count = self.num_classes
        if self.reduce_zero_label and strange == [count + 1]:
            return f". Values up to {count + 1} for {count} classes: does the list lack one?"
        if not self.reduce_zero_label and strange == [count]:
            return (
                f". Values {present[0]}..{count} for {count} classes: did you mean --reduce-zero-label (0 is"
                f" void, k is class k - 1) or --ignore-index {count} ({count} is void), or does the list lack"
                " the class of value 0, such as background?"
            )
        return ""

    def encode(self, values: np.ndarray) -> LabelledRuns:
        """The runs of `apply(values)`, with the same errors.

        Where a rule keeps distinct values distinct and in order, runs are found on the values and only the
        few labels are renamed, which saves a gather over all pixels. A rule that merges values needs it.
        RejectedInput for more than 254 classes in one image, which no batch can carry.
        """
        found = self._encode(values)
        if len(found.labels) > MOST_BYTE_LABELS:
            raise RejectedInput(
                f"{len(found.labels)} classes in one image, but a batch carries at most {MOST_BYTE_LABELS};"
                " cut the image into smaller ones, or merge classes with --mapping"
            )
        return found

    def _encode(self, values: np.ndarray) -> LabelledRuns:
        if values.dtype == np.uint8:
            found = encode_label_map(values)
            table, unknown = _lookup(self)
            ids = table[found.labels]
            kept = ids[ids != IGNORE]
            if len(kept) >= len(ids) - 1 and (kept[1:] > kept[:-1]).all() and unknown not in kept:
                renamed = np.zeros(len(ids) + 1, np.uint16)
                renamed[1:][ids != IGNORE] = np.arange(1, len(kept) + 1)
                fits = len(kept) <= MOST_BYTE_LABELS
                owners = renamed.astype(np.uint8)[found.owners] if fits else renamed[found.owners]
                return LabelledRuns(kept, found.lengths, owners)
        return encode_label_map(self.apply(values))

    def classes_without_a_value(self) -> list[int]:
        """The class ids that no value of a label map stands for: these classes can have no pixel."""
        return sorted(set(range(self.num_classes)) - set(self.table().tolist()))

    def may_hide_a_mask(self) -> bool:
        """Whether label maps of 0 and 255 would pass, with 255 as void: masks of one class."""
        return self.mapping is None and self.ignore_index == USUAL_VOID and not self.reduce_zero_label

    def is_threshold(self) -> bool:
        """Whether each value of 8 bits has one of two meanings, one below a value and one from it on.

        Then a mask may be read from a JPEG too, whose values near 0 and 255 are noise.
        """
        known = dict(self.mapping or ())  # in a manifest's order, which is that of text
        meanings = [known[value] for value in range(USUAL_VOID + 1) if value in known]
        switches = sum(one != other for one, other in pairwise(meanings))
        return len(meanings) == USUAL_VOID + 1 and switches == 1

    def describe(self) -> str:
        """The values that are known, in words."""
        if self.mapping is not None:
            return f"one of the {len(self.mapping)} values of the label mapping"
        first = 1 if self.reduce_zero_label else 0
        void = [] if not self.reduce_zero_label else ["0"]
        void += [] if self.ignore_index is None else [str(self.ignore_index)]
        tail = f", or {' or '.join(void)} for void" if void else ""
        return f"{first}..{first + self.num_classes - 1}{tail}"


THRESHOLD_MAPPING = """--mapping '{"0-127": 0, "128-255": 1}'"""
MASK_MAPPING = """--mapping '{"0": 0, "255": 1}' makes 255 class 1"""


def choose_rule(
    classes: tuple[str, ...], ignore_index: int | None, reduce_zero_label: bool, no_void: bool = False
) -> LabelRule:
    """The rule of label maps that hold class ids. `ignore_index` None = not said, which means 255 is void.

    SourceError where that default would make a class void: such a rule has to be asked for.
    """
    if no_void:
        return LabelRule(len(classes), None, reduce_zero_label)
    if ignore_index is not None:
        return LabelRule(len(classes), ignore_index, reduce_zero_label)
    taken = USUAL_VOID - 1 if reduce_zero_label else USUAL_VOID
    if taken < len(classes):
        raise SourceError(
            f"value {USUAL_VOID} is void unless said otherwise, and it is also class {taken},"
            f" {classes[taken]!r}. Say --ignore-index none if no value is void, --ignore-index V for another"
            f" value, or --ignore-index {USUAL_VOID} to make that class void"
        )
    return LabelRule(len(classes), USUAL_VOID, reduce_zero_label)


@lru_cache(maxsize=8)
def _lookup(rule: LabelRule) -> tuple[np.ndarray, int]:
    """The table as uint16 with unknown values marked by an id that no class has; and that id.

    A look-up is then one gather and one compare.
    """
    table = rule.table()
    return np.where(table == UNKNOWN, rule.num_classes, table).astype(np.uint16), rule.num_classes


def read_mapping(mapping: str | Path, num_classes: int) -> LabelRule:
    """The rule in `{"value in the label map": class id or null, ...}`, JSON itself or a file with it.

    null means void, and `"0-127"` every value from 0 to 127.
    """
    mapping = str(mapping)
    place = "--mapping" if mapping.lstrip().startswith("{") else mapping
    try:
        text = mapping if place != mapping else read_text(mapping, MOST_MAPPING_BYTES, encoding="utf-8-sig")
        facts = json.loads(text, object_pairs_hook=list)
        strange = [label for _, label in facts if label is not None and type(label) is not int]
        if strange:
            raise ValueError(f"{str(strange[0])[:40]!r} is no class id and not null")
        known: dict[int, int | None] = {}
        for key, label in facts:
            values = _values(key)
            if not known.keys().isdisjoint(values):
                raise ValueError(f"a value of {key!r} stands twice in the label mapping")
            known |= dict.fromkeys(values, label)
        pairs = tuple(sorted(known.items()))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise SourceError(
            f'{place}: not a label mapping ({error}); expected JSON such as {{"7": 0, "8": 1, "255": null}}'
        ) from error
    try:
        return LabelRule(num_classes, mapping=pairs)
    except SourceError as error:
        raise SourceError(f"{place}: {error}") from error


def _values(key: str) -> range:
    """Those that a key of a mapping names: `7`, or `0-127`."""
    match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", key)
    if match is None:
        raise ValueError(f"{key[:40]!r} is no value, nor a range of such as 0-127")
    first, last = int(match[1]), int(match[2] or match[1])
    if not first <= last <= LARGEST_VALUE:
        raise ValueError(f"{key[:40]!r}: values lie in 0..{LARGEST_VALUE}")
    return range(first, last + 1)
