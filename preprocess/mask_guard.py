"""Masks of 0 and 255, noticed while they are built: by the default rule their object would become void.

One such label map may be a scene without objects and with void borders. When no class but 0 has a pixel in a
whole data set, or in many samples drawn at random from it, it is a set of masks whose rule was never said.
When void stands in label maps without another class, and never in those with one, masks of 0 and 255 were put
among masks of 0 and 1: borders and unsure pixels would stand beside objects too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np

from maskshards.preprocess.errors import BuildError
from maskshards.preprocess.inputs.labels import MASK_MAPPING, USUAL_VOID, LabelRule
from maskshards.shards.format.index import ShardIndex
from maskshards.shards.format.manifest import Split

ENOUGH = 64  # samples, or all there are; shards deal them at random
ENOUGH_OF_EACH = 32  # of two kinds, before the whole data set was seen
SHOWN = 3  # names of each kind
VOID_INDEED = f"If {USUAL_VOID} is void indeed, say so: --ignore-index {USUAL_VOID}"


class Kind(NamedTuple):
    """What has a pixel in a label map."""

    class_0: bool
    others: bool
    void: bool


class Group(NamedTuple):
    """The samples of one kind."""

    samples: int
    names: tuple[str, ...]  # the first few


Kinds = Mapping[Kind, Group]


def kind_of(class_ids: Iterable[int], void_pixels: int) -> Kind:
    """The kind of one label map."""
    found = set(class_ids)
    return Kind(0 in found, bool(found - {0}), void_pixels > 0)


def together(parts: Iterable[Kinds]) -> dict[Kind, Group]:
    """The kinds of several sets of samples."""
    found: dict[Kind, Group] = {}
    for part in parts:
        for kind, more in part.items():
            samples, names = found.get(kind, Group(0, ()))
            found[kind] = Group(samples + more.samples, (*names, *more.names)[:SHOWN])
    return found


class MaskGuard:
    """Looks at finished shards in turn, of `total` samples in all, unless it was said what value is void."""

    def __init__(self, rule: LabelRule, void_is_said: bool, total: int) -> None:
        self._watching = rule.may_hide_a_mask() and not void_is_said
        self._enough = min(ENOUGH, total)
        self._samples = 0
        self._kinds: dict[Kind, Group] = {}

    def see(self, samples: int, kinds: Kinds) -> None:
        """Count `samples` more, some of which may be refused.

        BuildError once enough were seen that are masks of 0 and 255, alone or among others.
        """
        self._samples += samples
        self._kinds = together((self._kinds, kinds))
        if not self._watching or self._samples < self._enough:
            return
        if not any(kind.others for kind in self._kinds) and all(
            any(kind[place] for kind in self._kinds) for place in (0, 2)
        ):
            raise BuildError(
                f"in {self._samples} samples every pixel is class 0 or void (value {USUAL_VOID}), so no other"
                f" class would be learnt. If the label maps are masks of 0 and {USUAL_VOID}: {MASK_MAPPING}."
                f" {VOID_INDEED}"
            )
        self._check_mixed(ENOUGH_OF_EACH)

    def finish(self) -> None:
        """BuildError where the whole, now that all was seen, holds a few masks of 0 and 255 among others."""
        if self._watching:
            self._check_mixed(1)

    def _check_mixed(self, enough: int) -> None:
        if fault := mixed_masks(self._kinds, enough):
            raise BuildError(f"{fault}. {VOID_INDEED}")


def mixed_masks(kinds: Kinds, enough: int = 1) -> str:
    """What to say where masks of 0 and 255 may be hidden among others; '' otherwise.

    That is so where at least `enough` samples each hold class 0 and void alone, and other classes without
    void, and none holds both.
    """
    hidden = _group(kinds, others=False, void=True)
    plain = _group(kinds, others=True, void=False)
    if _group(kinds, others=True, void=True).samples or min(hidden.samples, plain.samples) < enough:
        return ""
    return (
        f"void (value {USUAL_VOID}) stands in {hidden.samples} label maps that hold class 0 and nothing else"
        f" ({_named(hidden)}), and in none of the {plain.samples} that hold another class ({_named(plain)})."
        f" If masks of 0 and {USUAL_VOID} are mixed with masks of 0 and 1:"
        f""" --mapping '{{"0": 0, "1": 1, "{USUAL_VOID}": 1}}' reads both"""
    )


def mask_notes(splits: Sequence[Split]) -> list[str]:
    """What a finished data set, from folders or the hub, says of masks that may be hidden in it, in lines."""
    if not all(
        LabelRule.from_json(split.manifest.label_rule).may_hide_a_mask()
        and (source := split.manifest.settings.get("source", {})).get("kind") in ("folder", "hf", "voc")
        and "colours" not in source
        for split in splits
    ):
        return []
    numbered = ((split, number) for split in splits for number in range(len(split.manifest.shards)))
    kinds = together(kinds_of_rows(split.index(number)) for split, number in numbered)
    if any(kind.others for kind in kinds):
        return [fault] if (fault := mixed_masks(kinds)) else []
    if not any(kind.void for kind in kinds):
        return []
    labelled = any(kind.class_0 for kind in kinds)
    found = "all that is labelled is class 0" if labelled else "nothing is labelled"
    return [f"{found}; if the label maps are masks of 0 and {USUAL_VOID}: {MASK_MAPPING}"]


def kinds_of_rows(rows: ShardIndex) -> dict[Kind, Group]:
    """The kinds of all samples of a shard, from its index."""
    sample = np.repeat(np.arange(len(rows)), np.diff(rows.label_offsets))
    labelled = np.bincount(sample, weights=rows.flat_areas, minlength=len(rows))
    void = rows.height.astype(np.int64) * rows.width > labelled
    class_0, others = np.zeros((2, len(rows)), bool)
    class_0[sample[rows.flat_class_ids == 0]] = True
    others[sample[rows.flat_class_ids != 0]] = True
    found = {}
    for kind in map(Kind._make, product((False, True), repeat=3)):
        mine = np.flatnonzero((class_0 == kind.class_0) & (others == kind.others) & (void == kind.void))
        if len(mine):
            found[kind] = Group(len(mine), tuple(rows.keys[row] for row in mine[:SHOWN]))
    return found


def _group(kinds: Kinds, *, others: bool, void: bool) -> Group:
    """The samples with a class of which `others` and `void` are so."""
    found = [group for kind, group in kinds.items() if kind[1:] == (others, void) and any(kind[:2])]
    names = tuple(name for group in found for name in group.names)
    return Group(sum(group.samples for group in found), names[:SHOWN])


def _named(group: Group) -> str:
    return ", ".join(group.names) + (", ..." if group.samples > len(group.names) else "")
