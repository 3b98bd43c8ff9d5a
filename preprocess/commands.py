"""What each command does, as text for the user; `__main__` parses, calls and prints."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

from tqdm import tqdm

from maskshards.preprocess.arguments import build_settings, part_of, source_request
from maskshards.preprocess.bench import bench
from maskshards.preprocess.bench_peers import bench_peers
from maskshards.preprocess.build import (
    WHOLE,
    Executor,
    Job,
    Part,
    execute,
    odd_palettes,
    plan_jobs,
    refuse_listed,
    shared_images,
)
from maskshards.preprocess.destinations.card import write_card
from maskshards.preprocess.destinations.place import Place
from maskshards.preprocess.destinations.publish import Published, publish_splits
from maskshards.preprocess.errors import BuildError
from maskshards.preprocess.executors.dask import run_on_dask
from maskshards.preprocess.executors.pool import run_tasks, warm_pool
from maskshards.preprocess.inputs.labels import LabelRule
from maskshards.preprocess.mask_guard import MaskGuard, mask_notes
from maskshards.preprocess.plan import BuildSettings
from maskshards.preprocess.same_images import same_image_lines
from maskshards.preprocess.scenes import write_scenes
from maskshards.preprocess.shard_task import ShardOutcome, build_shard
from maskshards.preprocess.sources.opening import open_source, void_is_said
from maskshards.preprocess.sources.source import Source
from maskshards.preprocess.sources.splits import resolve_split
from maskshards.preprocess.verify import verify_split
from maskshards.shards.commands.root_files import CARD_NAME
from maskshards.shards.errors import ShardError, counted, printable
from maskshards.shards.format.class_pixels import class_notes, count_class_pixels, named_classes
from maskshards.shards.format.manifest import open_split, open_splits

SHOWN_FAULTS = 20


def run_build(args: argparse.Namespace) -> str:
    """Build and publish, or build one part; BuildError, ShardError or OSError where that cannot be done."""
    place, settings = Place(args.out), build_settings(args)
    workers = _executor(args)
    place.check_workers(args.workers)
    part = part_of(args.part) if args.part else WHOLE
    request = source_request(args)
    source = open_source(request)
    found = source.splits() if not args.splits else ()
    splits = tuple(dict.fromkeys(resolve_split(word, source) for word in args.splits)) or found
    notes = [] if args.splits else list(source.left_out())
    with place.lock((part.index, part.count) if args.part else None), workers as executor:
        jobs = plan_jobs(source, splits, settings, place.split)
        if not args.part:  # the limit for parts is that of `finish`
            refuse_listed(jobs, args.allow_rejects)
        notes += shared_images(jobs, source) + odd_palettes(jobs, source)
        _tell([*notes, *(note for job in jobs for note in job.plan.notes)])
        total = sum(job.num_samples(part) for job in jobs)
        guard = MaskGuard(source.label_rule, void_is_said(request), total)
        outcomes = _execute(jobs, source, settings, executor, args.quiet, part, guard)
        if args.part:
            return _part_summary(args.out, part, outcomes)
        done = publish_splits([job.destination for job in jobs], args.allow_rejects)
        # A builder that was killed after it published had no time to describe.
        told = _describe(place, args.license) if done or place.root().read(CARD_NAME) is None else []
    fresh = {entry.manifest.split for entry in done}
    lines = [f"{place.split(name)}: published already, nothing to do" for name in splits if name not in fresh]
    return "\n".join([*(_summary(entry) for entry in done), *lines, *told, *_class_lines(place, splits)])


def _execute(
    jobs: list[Job],
    source: Source,
    settings: BuildSettings,
    executor: Executor,
    quiet: bool,
    part: Part,
    guard: MaskGuard,
) -> list[ShardOutcome]:
    outcomes: list[ShardOutcome] = []
    total = sum(job.num_samples(part) for job in jobs)
    # In a log each drawing is a line.
    pace_s = {} if sys.stderr.isatty() else {"mininterval": 60, "maxinterval": 60}
    with tqdm(total=total, unit="image", desc="build", disable=quiet, smoothing=0.05, **pace_s) as bar:

        def progress(outcome: ShardOutcome) -> None:
            outcomes.append(outcome)
            bar.update(outcome.planned)
            guard.see(outcome.planned, outcome.kinds)

        execute(jobs, source, settings, executor, progress, part)
    guard.finish()
    return outcomes


def _executor(args: argparse.Namespace) -> AbstractContextManager[Executor]:
    """Local workers start when it is entered, while the data set is being listed.

    BuildError for what it cannot be made of.
    """
    if args.executor == "local":
        return warm_pool(build_shard, args.workers)
    if not args.scheduler:
        raise BuildError("--executor dask needs --scheduler ADDRESS, such as tcp://10.0.0.1:8786")
    return nullcontext(partial(run_on_dask, scheduler=args.scheduler))


def _part_summary(out: str, part: Part, outcomes: list[ShardOutcome]) -> str:
    rejects = sum(outcome.rejects for outcome in outcomes)
    refused = f", {counted(rejects, 'input')} refused (finish lists them)" if rejects else ""
    return (
        f"{out}: part {part.index} of {part.count} is done, {counted(len(outcomes), 'shard')}{refused};"
        f" when all parts are: maskshards finish {out}"
    )


def run_finish(args: argparse.Namespace) -> str:
    """Publish what the parts of an array job built; BuildError names the shards that are missing."""
    place = Place(args.out)
    with place.lock():
        destinations = place.unfinished()
        if not destinations:
            raise BuildError(
                f"{args.out}: nothing to finish there; build its parts: maskshards build ... --part I/N"
            )
        done = publish_splits(destinations, args.allow_rejects)
        told = _describe(place, args.license)
    splits = tuple(entry.manifest.split for entry in done)
    return "\n".join([*(_summary(entry) for entry in done), *told, *_class_lines(place, splits)])


def _describe(place: Place, license_name: str) -> list[str]:
    """Card and class list of all splits that are there; what was left alone, in lines."""
    opened = [open_split(str(split)) for split in place.complete()]
    try:
        return write_card(place.root(), opened, license_name)
    finally:
        place.tidy()
        for split in opened:
            split.close()


def _tell(notes: list[str]) -> None:
    """What was passed over, before the work begins."""
    for note in notes:
        sys.stderr.write(f"note: {printable(note)}\n")


def _class_lines(place: Place, splits: Sequence[str]) -> list[str]:
    """What is odd about the classes of the published splits, and why perhaps; images that two share."""
    try:
        opened = [open_split(str(place.split(name))) for name in splits]
        counts = [count_class_pixels(split) for split in opened]
        shared, masks = same_image_lines(opened), mask_notes(opened)
    except (ShardError, OSError) as error:  # what is published is published
        return [f"classes: they cannot be counted now: {error}"]
    for split in opened:
        split.close()
    lines = class_notes(counts)
    rules = [LabelRule.from_json(split.manifest.label_rule) for split in opened]
    for rule, count in list(zip(rules, counts, strict=True))[:1]:  # one for all splits of a build
        if gone := rule.classes_without_a_value():
            names = named_classes(count.classes, gone)
            lines.append(f"no pixel can be {names}: the label maps may hold {rule.describe()}")
    return [*(f"classes: {line}" for line in [*lines, *masks]), *(f"images: {line}" for line in shared)]


def _summary(done: Published) -> str:
    manifest = done.manifest
    size = sum(shard.bytes for shard in manifest.shards)
    refused = (
        f", {counted(len(manifest.rejects), 'input')} refused (listed in the manifest)"
        if manifest.rejects
        else ""
    )
    return (
        f"{done.place}: {counted(manifest.num_samples, 'sample')} in"
        f" {counted(len(manifest.shards), 'shard')}, {size / 1e6:.1f} MB{refused},"
        f" fingerprint {manifest.fingerprint}"
    )


def run_verify(args: argparse.Namespace) -> str:
    """Compare with the source; BuildError lists what differs."""
    lines, faults = [], []
    for split in open_splits(args.out):
        folder = split.base
        check = verify_split(split, args.against, partial(run_tasks, workers=args.workers))
        lines.append(
            f"{folder}: {counted(check.samples, 'sample')}, {counted(check.pixels, 'label pixel')} compared,"
            f" {counted(len(check.faults), 'difference')}"
        )
        faults += [f"{folder}: {fault}" for fault in check.faults]
    if faults:
        shown = "\n".join(f"  {fault}" for fault in faults[:SHOWN_FAULTS])
        more = f"\n  ... and {len(faults) - SHOWN_FAULTS} more" if len(faults) > SHOWN_FAULTS else ""
        raise BuildError(
            f"the shards are not what the source is; {counted(len(faults), 'difference')}:\n{shown}{more}"
        )
    return "\n".join(lines)


def run_scenes(args: argparse.Namespace) -> str:
    """Make the demo's data set."""
    write_scenes(args.out, training=args.training, validation=args.validation, seed=args.seed)
    return f"{args.out}: {args.training} training and {args.validation} validation scenes"


def run_bench(args: argparse.Namespace) -> str:
    """Measure on the first of the named splits."""
    source = open_source(source_request(args))
    split = (tuple(args.splits) or source.splits())[0]
    if args.peers:
        beside = bench_peers(source, split, args.rounds)
        return json.dumps(beside.to_json(), indent=1) if args.json else beside.to_markdown()
    found = bench(source, split, workers=tuple(args.workers), rounds=args.rounds, chunks=args.chunks)
    return json.dumps(found.to_json(), indent=1) if args.json else found.to_markdown()


COMMANDS = {
    "bench": run_bench,
    "build": run_build,
    "finish": run_finish,
    "verify": run_verify,
    "scenes": run_scenes,
}
