"""What each command does, as text for the user; `__main__` parses, calls and prints."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from tqdm import tqdm

from preprocess.arguments import build_settings, source_request
from preprocess.build import execute, plan_jobs
from preprocess.destination import LocalDestination
from preprocess.errors import BuildError
from preprocess.lock import build_lock
from preprocess.pool import run_tasks
from preprocess.publish import Published, publish_splits
from preprocess.scenes import write_scenes
from preprocess.sources.opening import open_source
from preprocess.verify import verify_split
from shards.manifest import open_splits

SHOWN_FAULTS = 20


def run_build(words: argparse.Namespace) -> str:
    """Build and publish; BuildError, ShardError or OSError where that cannot be done."""
    out, settings = Path(words.out), build_settings(words)
    source = open_source(source_request(words))
    splits = tuple(words.splits) or source.splits()
    with build_lock(out):
        jobs = plan_jobs(source, splits, settings, lambda split: LocalDestination(out / split))
        total = sum(job.plan.facts.num_samples for job in jobs)
        with tqdm(total=total, unit="image", desc="build", disable=words.quiet, smoothing=0.05) as bar:
            executor = partial(run_tasks, workers=words.workers)
            execute(jobs, source, settings, executor, lambda outcome: bar.update(outcome.planned))
        done = publish_splits([job.destination for job in jobs], words.allow_rejects)
    fresh = {entry.manifest.split for entry in done}
    lines = [f"{out / split}: published already, nothing to do" for split in splits if split not in fresh]
    return "\n".join([*(_summary(entry) for entry in done), *lines])


def _summary(done: Published) -> str:
    manifest = done.manifest
    size = sum(shard.bytes for shard in manifest.shards)
    refused = f", {len(manifest.rejects)} inputs refused (listed in the manifest)" if manifest.rejects else ""
    return (
        f"{done.place}: {manifest.num_samples} samples in {len(manifest.shards)} shards, {size / 1e6:.1f} "
        f"MB{refused},"
        f" fingerprint {manifest.fingerprint}"
    )


def run_verify(words: argparse.Namespace) -> str:
    """Compare with the source; BuildError lists what differs."""
    lines, faults = [], []
    for split in open_splits(words.out):
        folder = split.base
        check = verify_split(split, words.against, partial(run_tasks, workers=words.workers))
        lines.append(
            f"{folder}: {check.samples} samples, {check.pixels} label pixels compared, {len(check.faults)} "
            "differences"
        )
        faults += [f"{folder}: {fault}" for fault in check.faults]
    if faults:
        shown = "\n".join(f"  {fault}" for fault in faults[:SHOWN_FAULTS])
        more = f"\n  ... and {len(faults) - SHOWN_FAULTS} more" if len(faults) > SHOWN_FAULTS else ""
        raise BuildError(f"the shards are not what the source is; {len(faults)} differences:\n{shown}{more}")
    return "\n".join(lines)


def run_scenes(words: argparse.Namespace) -> str:
    """Make the demo's data set."""
    write_scenes(words.out, training=words.training, validation=words.validation, seed=words.seed)
    return f"{words.out}: {words.training} training and {words.validation} validation scenes"


COMMANDS = {"build": run_build, "verify": run_verify, "scenes": run_scenes}
