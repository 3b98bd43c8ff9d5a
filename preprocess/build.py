"""Plan and execute: every shard of a data set, or of one part of it.

Everything that decides a byte stands in the plan; this module only sees to it that every shard is made, by
whichever executor. A build that stops anywhere goes on from there when the same command runs again.
`publish` does the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations

from maskshards.preprocess.destinations.local import BUILD_FOLDER, PARTIAL, PLAN_FILE, Destination
from maskshards.preprocess.destinations.publish import published, stored_plan
from maskshards.preprocess.errors import BuildError, RejectedInput
from maskshards.preprocess.inputs.colours import palette_conflict
from maskshards.preprocess.inputs.source_files import read_unchanged
from maskshards.preprocess.plan import BuildSettings, SplitFacts, SplitPlan, plan_split
from maskshards.preprocess.rejects import check_rejects
from maskshards.preprocess.shard_task import ShardOutcome, ShardTask, build_shard
from maskshards.preprocess.sources.folder import FolderSource
from maskshards.preprocess.sources.source import Source
from maskshards.shards.errors import SampleError, counted

LOOKED_AT = 32  # label maps of a split, before the build

Executor = Callable[[Callable[[ShardTask], ShardOutcome], Iterable[ShardTask]], Iterator[ShardOutcome]]
Progress = Callable[[ShardOutcome], None]


@dataclass(frozen=True, slots=True)
class Part:
    """Part `index` of `count` equal ones of a build: every count-th shard, from `index` (from 0) on."""

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise BuildError(
                f"--part {self.index}/{self.count}: parts count from 0, so the last one is {self.count - 1}"
            )


WHOLE = Part(0, 1)


@dataclass(frozen=True)
class Job:
    """One split to build: its plan and its place."""

    plan: SplitPlan
    destination: Destination

    def num_samples(self, part: Part) -> int:
        """Samples in the shards of this part."""
        return sum(len(self.plan.names_of(number)) for number in self._numbers(part))

    def _numbers(self, part: Part) -> range:
        return range(part.index, self.plan.facts.num_shards, part.count)

    def tasks(self, source: Source, settings: BuildSettings, part: Part) -> Iterator[ShardTask]:
        """The shards of this part."""
        facts = self.plan.facts
        for number in self._numbers(part):
            name, names = facts.shard_name(number), self.plan.names_of(number)
            yield ShardTask(source, self.destination, facts.split, settings.policy, facts.digest, name, names)


def plan_jobs(
    source: Source,
    splits: tuple[str, ...],
    settings: BuildSettings,
    destination_of: Callable[[str], Destination],
) -> list[Job]:
    """The splits that still have to be built, in order; published ones of the same plan are left out."""
    jobs = []
    for split in splits or source.splits():
        job = Job(plan_split(source, split, settings), destination_of(split))
        done = published(job.destination)
        if done is None:
            jobs.append(job)
        elif done.settings.get("plan") == job.plan.facts.digest:
            job.destination.finish()  # its builder may have been killed between the manifest and this
        else:
            raise BuildError(
                f"{job.destination} holds a published data set of another plan (other source files or "
                "settings);"
                " delete it or build to another place"
            )
    return jobs


def refuse_listed(jobs: list[Job], allow_rejects: int) -> None:
    """RejectsError before any work where the listings alone refuse more inputs than are allowed."""
    check_rejects(
        [(job.destination, job.plan.facts.rejects) for job in jobs], allow_rejects, "nothing was built"
    )


def shared_images(jobs: list[Job], source: Source) -> list[str]:
    """One line for each two splits whose lists of names share images: trained on, they test nothing."""
    if not source.settings().get("lists"):
        return []  # in folders, two images may have one name
    names = {job.plan.facts.split: set(job.plan.order) for job in jobs}
    lines = []
    for first, second in combinations(names, 2):
        shared = names[first] & names[second]
        lines += (
            [f"{first} and {second} share {counted(len(shared), 'image')}, such as {min(shared)}"]
            if shared
            else []
        )
    return lines


def odd_palettes(jobs: list[Job], source: Source) -> list[str]:
    """One line where palettes of label maps disagree, from a few drawn at random of each split."""
    if not isinstance(source, FolderSource) or source.colours or not source.label_ending.endswith(".png"):
        return []

    def files() -> Iterator[tuple[str, bytes]]:
        for job in jobs:
            for name in job.plan.order[:LOOKED_AT]:
                with suppress(RejectedInput, SampleError):  # told when its shard is built
                    path = source.item(job.plan.facts.split, name).label_path
                    yield path, read_unchanged(source.root, path)

    try:
        return [fault] if (fault := palette_conflict(files())) else []
    except RejectedInput:  # a damaged file, told likewise
        return []


def execute(
    jobs: list[Job],
    source: Source,
    settings: BuildSettings,
    executor: Executor,
    progress: Progress,
    part: Part = WHOLE,
) -> None:
    """Make every shard of the part that is not there yet. Call it with the build lock held."""
    for job in jobs:
        prepare(job.destination, job.plan.facts, part)
    tasks = (task for job in jobs for task in job.tasks(source, settings, part))
    try:
        for outcome in executor(build_shard, tasks):
            progress(outcome)
    finally:
        if part == WHOLE:
            for job in jobs:
                remove_partials(job.destination)


def prepare(destination: Destination, facts: SplitFacts, part: Part) -> None:
    """Leave the plan at the destination and clear what an unfinished build left there.

    That is one of another plan, or one that was killed.
    """
    # In this order: another part writes the plan before its first shard, so a shard seen here has its plan.
    strange = [name for name in destination.names() if not name.startswith(f"{BUILD_FOLDER}/")]
    found = stored_plan(destination)
    if found is None and strange:
        raise BuildError(
            f"{destination} holds {', '.join(strange[:3])}{', ...' if len(strange) > 3 else ''} and no "
            "build of ours;"
            " give an empty or a new folder with --out"
        )
    other = found if found is not None and found.digest != facts.digest else None
    if other is not None and (part != WHOLE or not destination.locked):
        why = "so the parts would not fit together" if part != WHOLE else "and its builder may be at work"
        raise BuildError(
            f"{destination} holds an unfinished build of another plan, {why};"
            " build from the same files with the same settings, or delete it"
        )
    if part == WHOLE:
        remove_partials(destination)
    if other is not None:
        for number in range(other.num_shards):
            destination.remove(other.shard_name(number))
        destination.finish()
    if found != facts:
        destination.write(PLAN_FILE, facts.to_bytes())


def remove_partials(destination: Destination) -> None:
    """Delete scratch files of killed workers; only the holder of the whole destination may."""
    for name in destination.names():
        if name.endswith(PARTIAL):
            destination.remove(name)
