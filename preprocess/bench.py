"""How fast a build is, against the least that any build has to do, on the same files in one run.

The limit: read both files, decode the label map, copy both into a tar with the standard library. Rounds of
limit and build take turns, so that a machine that slows down slows both, and ratios are of medians. Wall time
is from the first task's start to the last one's end, so starting processes is left out; CPU time is that of
the tasks, and the figure to trust on a busy machine.
"""

from __future__ import annotations

import io
import resource
import statistics
import tarfile
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from maskshards.preprocess.destinations.local import LocalDestination
from maskshards.preprocess.errors import BuildError
from maskshards.preprocess.executors.pool import run_tasks
from maskshards.preprocess.inputs.image_policy import ImagePolicy
from maskshards.preprocess.inputs.label_file import decode_label_file
from maskshards.preprocess.shard_task import ShardTask, build_shard
from maskshards.preprocess.sources.source import Source

LIMIT, WITHOUT_PROOF, WITH_PROOF = "limit", "build without image proof", "build"
MEMORY_FACTOR = 4  # the second memory figure is of so many times the samples


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some samples, to be worked through by one process in one of the ways above."""

    way: str
    source: Source
    split: str
    names: tuple[str, ...]
    folder: str
    times: int = 1  # how often, into different shards

    def __str__(self) -> str:
        return self.folder


@dataclass(frozen=True, slots=True)
class Spent:
    """What a chunk took."""

    start_s: float  # on the system's monotonic clock, which all processes share
    end_s: float
    cpu_s: float
    peak_mb: float  # largest resident set of the process so far


@dataclass(frozen=True, slots=True)
class Rate:
    """One way of working, by the median of its rounds."""

    way: str
    workers: int
    images_per_s: float
    cpu_ms_per_image: float


@dataclass(frozen=True, slots=True)
class BenchResult:
    """All that was measured."""

    images: int  # in each round
    rates: tuple[Rate, ...]
    peak_mb: tuple[float, float]  # of a worker that built one chunk, and MEMORY_FACTOR chunks

    def rate(self, way: str, workers: int) -> Rate:
        """The figures of one way; KeyError where it was not measured."""
        return {(rate.way, rate.workers): rate for rate in self.rates}[way, workers]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    def to_markdown(self) -> str:
        """A table with ratios to the limit of the same number of workers."""
        rows = [
            "| what | workers | images/s | of the limit | CPU ms/image | of the limit |",
            "|---" * 6 + "|",
        ]
        for rate in self.rates:
            limit = self.rate(LIMIT, rate.workers)
            wall = rate.images_per_s / limit.images_per_s
            cpu = limit.cpu_ms_per_image / rate.cpu_ms_per_image
            speed, cost = f"{rate.images_per_s:.0f} | {wall:.2f}", f"{rate.cpu_ms_per_image:.2f} | {cpu:.2f}"
            rows.append(f"| {rate.way} | {rate.workers} | {speed} | {cost} |")
        few, many = self.peak_mb
        rows.append(f"\n{self.images} images a round. Peak memory of a worker: {few:.0f} MB for one shard,")
        rows.append(f"{many:.0f} MB for {MEMORY_FACTOR} shards.")
        for way in (LIMIT, WITHOUT_PROOF, WITH_PROOF):
            for workers in sorted({rate.workers for rate in self.rates} - {1}):
                gain = self.rate(way, workers).images_per_s / self.rate(way, 1).images_per_s
                rows.append(f"From 1 to {workers} workers, {way}: {gain:.2f} times.")
        return "\n".join(rows)


def bench(source: Source, split: str, *, workers: tuple[int, ...], rounds: int, chunks: int) -> BenchResult:
    """Measure `rounds` rounds of `chunks` times the whole split, in every way and number of workers."""
    names = source.listing(split).names
    if not names or rounds < 1 or chunks < 1:
        raise BuildError(f"nothing to measure: {len(names)} samples, {rounds} rounds of {chunks} chunks")
    spent: dict[tuple[str, int], list[tuple[float, float]]] = {}
    ways = (LIMIT, WITHOUT_PROOF, WITH_PROOF)
    for _ in range(rounds):
        for count in workers:
            for way in ways:
                spent.setdefault((way, count), []).append(_round(way, source, split, names, count, chunks))
    images = chunks * len(names)
    rates = [
        Rate(
            way,
            count,
            images / statistics.median(wall for wall, _ in rows),
            1e3 * statistics.median(cpu for _, cpu in rows) / images,
        )
        for (way, count), rows in spent.items()
    ]
    few, many = (_peak_mb(source, split, names, times) for times in (1, MEMORY_FACTOR))
    return BenchResult(images, tuple(rates), (few, many))


def _round(
    way: str, source: Source, split: str, names: tuple[str, ...], workers: int, chunks: int
) -> tuple[float, float]:
    """Seconds of wall and CPU time."""
    with tempfile.TemporaryDirectory(prefix="maskshards-bench-") as folder:
        tasks = [Chunk(way, source, split, names, f"{folder}/{number}") for number in range(chunks)]
        spent = list(run_tasks(work, tasks, workers))
    wall = max(part.end_s for part in spent) - min(part.start_s for part in spent)
    return wall, sum(part.cpu_s for part in spent)


def _peak_mb(source: Source, split: str, names: tuple[str, ...], times: int) -> float:
    """Of a fresh process: with two workers allowed and one task, the pool starts one."""
    with tempfile.TemporaryDirectory(prefix="maskshards-bench-") as folder:
        (spent,) = run_tasks(work, [Chunk(WITH_PROOF, source, split, names, folder, times)], 2)
    return spent.peak_mb


def work(chunk: Chunk) -> Spent:
    """Do what a chunk asks for and say what it took."""
    start_s, start_cpu_s = time.monotonic(), time.process_time()
    Path(chunk.folder).mkdir(exist_ok=True)
    for number in range(chunk.times):
        if chunk.way == LIMIT:
            _copy(chunk, Path(chunk.folder) / f"{number}.tar")
        else:
            policy = ImagePolicy(prove=chunk.way == WITH_PROOF)
            place, name = LocalDestination(Path(chunk.folder)), f"{chunk.split}-{number:05d}.tar"
            build_shard(ShardTask(chunk.source, place, chunk.split, policy, "bench", name, chunk.names))
    return Spent(start_s, time.monotonic(), time.process_time() - start_cpu_s, peak_memory_mb())


def peak_memory_mb() -> float:
    """The largest resident set of this process.

    Linux's getrusage also counts the parent before exec, hence /proc.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts bytes


def _copy(chunk: Chunk, path: Path) -> None:
    """The limit."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name in chunk.names:
            item = chunk.source.item(chunk.split, name)
            raw = chunk.source.read(item)
            decode_label_file(raw.label)
            for ending, data in (("jpg", raw.image), ("png", raw.label)):
                member = tarfile.TarInfo(f"{item.key}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
