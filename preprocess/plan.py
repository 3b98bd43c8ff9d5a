"""Which sample goes into which shard: a pure function of the listing and the settings.

Samples are sorted by a keyed hash of their name (BLAKE2b with the seed), which is a random permutation that
needs no generator, so it is the same under every version of every library, and the same on every machine of
an array job. The sorted list is cut into shards whose sizes differ by at most one, so every shard is a fair
sample of the split.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from maskshards.preprocess.errors import BuildError, Reject, SourceError
from maskshards.preprocess.inputs.image_policy import ImagePolicy
from maskshards.preprocess.inputs.labels import LabelRule
from maskshards.preprocess.inputs.reencode import RE_ENCODING
from maskshards.preprocess.inputs.tiles import is_tile_key, untiled_key
from maskshards.preprocess.sources.source import Source
from maskshards.shards.errors import SampleError

# Of JSON that holds something else than what is looked for in it.
UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
PLAN_VERSION = 1  # grows when the same settings would give other bytes


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """Everything besides the source that decides the bytes of a build."""

    samples_per_shard: int = 256  # at most
    seed: int = 0
    policy: ImagePolicy = field(default_factory=ImagePolicy)

    def __post_init__(self) -> None:
        if self.samples_per_shard < 1:
            raise BuildError(f"--samples-per-shard is {self.samples_per_shard}; at least 1 is needed")
        self.policy.check()

    def to_json(self) -> dict[str, Any]:
        """The settings as they stand in the manifest."""
        facts = {
            "samples_per_shard": self.samples_per_shard,
            "seed": self.seed,
            "policy": self.policy.to_json(),
        }
        touched = self.policy.convert or self.policy.max_short_side or self.policy.tile
        return {**facts, "re_encoding": RE_ENCODING} if touched else facts

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> BuildSettings:
        """The inverse of `to_json`."""
        return cls(facts["samples_per_shard"], facts["seed"], ImagePolicy.from_json(facts["policy"]))


@dataclass(frozen=True, slots=True)
class SplitFacts:
    """What is left of a plan when its samples are taken out.

    It is enough to publish the split without the source.
    """

    split: str
    digest: str  # sha256 hex over settings and names: two plans with one digest write the same shards
    num_shards: int
    num_samples: int
    rejects: tuple[Reject, ...]  # refused by the listing already
    dataset: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...] | None
    label_rule: dict[str, Any]  # LabelRule.to_json
    source: dict[str, Any]  # Source.settings
    settings: dict[str, Any]  # BuildSettings.to_json

    def shard_name(self, number: int) -> str:
        """File name of a shard below the split's folder."""
        return f"{self.split}-{number:05d}.tar"

    def to_bytes(self) -> bytes:
        """As JSON, for the build folder."""
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> SplitFacts:
        """The inverse of `to_bytes`; one of UNREADABLE for anything else."""
        facts = json.loads(data)
        facts["rejects"] = tuple(Reject(**reject) for reject in facts["rejects"])
        facts["classes"] = tuple(facts["classes"])
        facts["palette"] = facts["palette"] and tuple(tuple(color) for color in facts["palette"])
        made = cls(**facts)
        LabelRule.from_json(made.label_rule)
        BuildSettings.from_json(made.settings)
        sound = all(type(number) is int for number in (made.num_shards, made.num_samples))
        names = (made.split, made.digest, made.dataset, *made.classes)
        if not sound or not all(isinstance(name, str) for name in names):
            raise TypeError("counts are whole numbers, names are text")
        return made


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """The shards of one split."""

    facts: SplitFacts
    order: tuple[str, ...]  # all names, permuted
    notes: tuple[str, ...] = ()  # for the user: what the listing passed over

    def names_of(self, number: int) -> tuple[str, ...]:
        """The samples of a shard, in the order in which they stand in it."""
        total, shards = len(self.order), self.facts.num_shards
        return self.order[number * total // shards : (number + 1) * total // shards]


def plan_split(source: Source, split: str, settings: BuildSettings) -> SplitPlan:
    """List the split and lay out its shards. SourceError for an empty split."""
    if not split or not all(char.isascii() and (char.isalnum() or char in "_-") for char in split):
        raise SourceError(
            f"split {split!r}: it names folders and files, so only letters, digits, '_' and '-' are possible"
        )
    listing = source.listing(split)
    if not listing.names:
        kinds = {reject.reason.partition(" without ")[0]: reject for reject in reversed(listing.rejects)}
        shown = ", and ".join(str(reject) for reject in sorted(kinds.values(), key=str)[:2])
        first = f"; of {len(listing.rejects)} refused files: {shown}" if kinds else ""
        passed = "".join(f"; {note}" for note in listing.notes)
        raise SourceError(
            f"split {split!r} is empty: no pair of image and label map was found{first}{passed}. Name the"
            " splits to build with --splits"
        )
    if settings.policy.tile:
        _check_tile_keys(source, split, listing.names)
    order = permute(listing.names, settings.seed)
    facts = SplitFacts(
        split,
        digest="",
        num_shards=-(-len(order) // settings.samples_per_shard),
        num_samples=len(order),
        rejects=listing.rejects,
        dataset=source.dataset,
        classes=source.classes,
        palette=source.palette,
        label_rule=source.label_rule.to_json(),
        source=source.settings(),
        settings=settings.to_json(),
    )
    # Without the refused files, so that mending the list of files leaves finished shards their plan.
    digest = hashlib.sha256(f"{PLAN_VERSION} ".encode() + replace(facts, rejects=()).to_bytes())
    for name in listing.names:
        digest.update(b"\0" + name.encode())
    return SplitPlan(replace(facts, digest=digest.hexdigest()), order, listing.notes)


def _check_tile_keys(source: Source, split: str, names: tuple[str, ...]) -> None:
    """SourceError for an image whose key would be that of a tile of another one."""
    images: dict[str, str] = {}
    for name in names:
        with suppress(SampleError):  # it is refused when its shard is built
            item = source.item(split, name)
            images[item.key] = item.image_path
    for key in filter(is_tile_key, images):
        if untiled_key(key) in images:
            raise SourceError(
                f"{images[key]} has a name that a tile of {images[untiled_key(key)]} may get; rename it"
            )


def permute(names: tuple[str, ...], seed: int) -> tuple[str, ...]:
    """The names in the order of their keyed hashes; adding a name leaves the order of the others alone."""
    word = str(seed).encode()
    if len(word) > hashlib.blake2b.MAX_KEY_SIZE:
        raise BuildError(
            f"--seed {seed} is too long; at most {hashlib.blake2b.MAX_KEY_SIZE} digits are possible"
        )
    return tuple(
        sorted(
            names, key=lambda name: (hashlib.blake2b(name.encode(), digest_size=16, key=word).digest(), name)
        )
    )
