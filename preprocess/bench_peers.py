"""A build beside what people would use instead, from start-up to the last byte, in turns on the same files.

The others copy the bytes of image and label into their own containers and check nothing; a build decodes
every image and label, turns labels into runs, and reads everything back. Each runs in a process of its own,
so that what it imports is counted. Those that are not installed are named.
"""

from __future__ import annotations

import pickle
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from maskshards.preprocess.build import execute, plan_jobs
from maskshards.preprocess.destinations.local import LocalDestination
from maskshards.preprocess.destinations.publish import publish_splits
from maskshards.preprocess.errors import BuildError
from maskshards.preprocess.plan import BuildSettings
from maskshards.preprocess.sources.source import Listing, Source

OURS = "maskshards build"
SHARD_BYTES = 64 << 20  # of the others' containers


@dataclass(frozen=True, slots=True)
class PeerTime:
    """One way to pack a split, by the median of its rounds; one process."""

    way: str
    start_s: float  # wall time for a single sample
    wall_s: float
    cpu_s: float  # user and system, of the process and its children


@dataclass(frozen=True, slots=True)
class PeerResult:
    """All that was measured."""

    images: int
    times: tuple[PeerTime, ...]
    missing: tuple[str, ...]  # packages that are not installed

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    def to_markdown(self) -> str:
        """A table."""
        rows = ["| what | start-up s | wall s | CPU s | images/s |", "|---" * 5 + "|"]
        for found in self.times:
            rate = f"{self.images / found.wall_s:.0f}"
            rows.append(
                f"| {found.way} | {found.start_s:.1f} | {found.wall_s:.1f} | {found.cpu_s:.1f} | {rate} |"
            )
        rows.append(f"\n{self.images} images, one process each, start-up included, in turns; medians.")
        rows += [f"Not installed: {', '.join(self.missing)}."] if self.missing else []
        return "\n".join(rows)


def bench_peers(source: Source, split: str, rounds: int) -> PeerResult:
    """Pack the split in every way that is installed, `rounds` times. BuildError where one of them fails."""
    names = source.listing(split).names
    if not names or rounds < 1:
        raise BuildError(f"nothing to measure: {len(names)} samples, {rounds} rounds")
    ways = [way for way, (_, package) in WAYS.items() if find_spec(package)]
    spent: dict[str, list[tuple[float, float, float]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            start_s, _ = _run(way, source, split, names[:1])
            spent[way].append((start_s, *_run(way, source, split, names)))
    times = [
        PeerTime(way, *(statistics.median(column) for column in zip(*rows, strict=True)))
        for way, rows in spent.items()
    ]
    missing = [package for way, (_, package) in WAYS.items() if way not in ways]
    return PeerResult(len(names), tuple(times), tuple(missing))


def _run(way: str, source: Source, split: str, names: tuple[str, ...]) -> tuple[float, float]:
    """Seconds of wall and CPU time of a fresh process."""
    with tempfile.TemporaryDirectory(prefix="maskshards-bench-") as folder:
        (Path(folder) / "task").write_bytes(pickle.dumps((way, source, split, names)))
        program = "import sys; from maskshards.preprocess.bench_peers import pack; pack(sys.argv[1])"
        before, start_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        done = subprocess.run([sys.executable, "-c", program, folder], capture_output=True, text=True)
        wall_s, after = time.monotonic() - start_s, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise BuildError(f"{way} failed: {done.stderr.strip()[-2000:]}")
    return wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def pack(folder: str) -> None:
    """What the measured process does."""
    way, source, split, names = pickle.loads((Path(folder) / "task").read_bytes())
    WAYS[way][0](source, split, names, f"{folder}/out")


def _ours(source: Source, split: str, names: tuple[str, ...], out: str) -> None:
    settings = BuildSettings()
    jobs = plan_jobs(
        cast(Source, _Part(source, names)),
        (split,),
        settings,
        lambda name: LocalDestination(Path(out) / name),
    )
    execute(jobs, source, settings, map, lambda outcome: None)
    publish_splits([job.destination for job in jobs], allow_rejects=len(names))


class _Part:
    """A source that lists some of its samples."""

    def __init__(self, source: Source, names: tuple[str, ...]) -> None:
        self._source, self._names = source, names

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def listing(self, split: str) -> Listing:
        return Listing(self._names, ())


def _webdataset(source: Source, split: str, names: tuple[str, ...], out: str) -> None:
    import webdataset

    Path(out).mkdir()
    with webdataset.ShardWriter(f"{out}/%05d.tar", maxsize=SHARD_BYTES, verbose=0) as writer:
        for name in names:
            writer.write(_sample(source, split, name))


def _mosaic(source: Source, split: str, names: tuple[str, ...], out: str) -> None:
    from streaming import MDSWriter

    columns = {"__key__": "str", "jpg": "bytes", "png": "bytes"}
    with MDSWriter(out=out, columns=columns, size_limit=SHARD_BYTES) as writer:
        for name in names:
            writer.write(_sample(source, split, name))


def _litdata(source: Source, split: str, names: tuple[str, ...], out: str) -> None:
    from litdata import optimize

    optimize(
        fn=partial(_sample, source, split),
        inputs=list(names),
        output_dir=out,
        num_workers=1,
        chunk_bytes=SHARD_BYTES,
    )


def _sample(source: Source, split: str, name: str) -> dict[str, Any]:
    item = source.item(split, name)
    raw = source.read(item)
    return {"__key__": item.key, "jpg": raw.image, "png": raw.label}


WAYS = {  # what runs, and the package that it needs
    OURS: (_ours, "maskshards"),
    "webdataset.ShardWriter": (_webdataset, "webdataset"),
    "streaming.MDSWriter": (_mosaic, "streaming"),
    "litdata.optimize": (_litdata, "litdata"),
}
