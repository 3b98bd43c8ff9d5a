"""Other loaders of the field on the same samples, for `maskshards bench loader URL --peers`.

Each stores the bytes of the same JPEG and label PNG in its own format and delivers batches of whole 8-bit
images and label maps, decoded by the same two decoders, with as many threads or worker processes as the
loader has. Those that are installed take part: `pip install maskshards[bench]`; MosaicML streaming needs an
environment of its own, since it asks for older numpy and transformers. Every turn is a fresh process;
writing files and starting up are not timed.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from maskshards.shards.commands.baselines import label_path, opened, write_loose
from maskshards.shards.commands.stopwatch import WARM_UP, Figures, Timing, best_of, time_stream
from maskshards.shards.format.manifest import Split
from maskshards.shards.loading.loader import Loader

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]  # (H, W, 3), (H, W)


def decode_pair(image: bytes, labels: bytes) -> Pair:
    """What every peer does with a sample; ours decodes its JPEGs with the same library."""
    if image[:2] == b"\xff\xd8":
        pixels = simplejpeg.decode_jpeg(image, "RGB")
    else:
        with opened(io.BytesIO(image)) as file:
            pixels = np.asarray(file.convert("RGB"))
    with opened(io.BytesIO(labels)) as file:
        return pixels, np.asarray(file)


def read_pair(path: Path) -> Pair:
    """The same of loose files."""
    return decode_pair(path.read_bytes(), label_path(path).read_bytes())


def bytes_of(path: Path) -> dict[str, Any]:
    """What is stored of a sample."""
    return {"image": path.read_bytes(), "labels": label_path(path).read_bytes()}


def decode_list(samples: list[dict[str, Any]]) -> list[Pair]:
    """Collates stored samples, in the worker process."""
    return [decode_pair(sample["image"], sample["labels"]) for sample in samples]


@dataclass(frozen=True)
class Job:
    """What one loader is to do; crosses to its process."""

    paths: list[Path]  # loose images, as many as are taken
    folder: Path  # its own files
    batch: int
    workers: int


def write_webdataset(job: Job) -> None:
    """Tar shards of 64 samples."""
    wds = import_module("webdataset")
    with wds.ShardWriter(str(job.folder / "%05d.tar"), maxcount=64, verbose=0) as writer:
        for number, path in enumerate(job.paths):
            writer.write({"__key__": f"{number:06d}", **bytes_of(path)})


def webdataset(job: Job) -> Any:
    """A shuffle buffer of 100, worker processes."""
    wds = import_module("webdataset")
    tars = sorted(map(str, job.folder.glob("*.tar")))
    samples = wds.WebDataset(tars, shardshuffle=False, empty_check=False).repeat().shuffle(100)
    batches = samples.batched(job.batch, collation_fn=decode_list, partial=False)
    return wds.WebLoader(batches, batch_size=None, num_workers=job.workers)


def write_streaming(job: Job) -> None:
    """MosaicML's MDS shards."""
    columns = {"image": "bytes", "labels": "bytes"}
    with import_module("streaming").MDSWriter(out=str(job.folder), columns=columns) as writer:
        for path in job.paths:
            writer.write(bytes_of(path))


def streaming(job: Job) -> Any:
    """Shuffled, worker processes."""
    import_module("streaming.base.util").clean_stale_shared_memory()
    make = import_module("streaming").StreamingDataset
    samples = make(local=str(job.folder), shuffle=True, batch_size=job.batch)
    return import_module("torch.utils.data").DataLoader(
        samples, job.batch, num_workers=job.workers, collate_fn=decode_list, drop_last=True
    )


def write_litdata(job: Job) -> None:
    """Lightning's chunks of 64 MB."""
    make = import_module("litdata").optimize
    make(bytes_of, job.paths, output_dir=str(job.folder), chunk_bytes="64MB", num_workers=1, verbose=False)


def litdata(job: Job) -> Any:
    """Shuffled, worker processes."""
    module = import_module("litdata")
    samples = module.StreamingDataset(str(job.folder), shuffle=True, drop_last=False)
    return module.StreamingDataLoader(
        samples, batch_size=job.batch, num_workers=job.workers, collate_fn=decode_list, drop_last=True
    )


def grain(job: Job) -> Any:
    """Loose files, shuffled, threads."""
    module = import_module("grain")
    samples = module.MapDataset.source(job.paths).shuffle(seed=0).map(read_pair)
    options = module.ReadOptions(num_threads=job.workers, prefetch_buffer_size=4 * job.batch)
    return samples.to_iter_dataset(options).batch(job.batch, drop_remainder=True, batch_fn=list)


def spdl(job: Job) -> Iterator[Any]:
    """Loose files, in order, threads."""
    builder = import_module("spdl.pipeline").PipelineBuilder()
    builder = builder.add_source(job.paths).pipe(read_pair, concurrency=job.workers)
    pipeline = builder.aggregate(job.batch, drop_last=True).add_sink(2).build(num_threads=job.workers)
    with pipeline.auto_stop():
        yield from pipeline


def own(place: str, job: Job) -> Iterator[Any]:
    """The loader of this package, on the shards themselves."""
    with Loader(place, batch_per_rank=job.batch, threads=job.workers) as loader:
        yield from loader


WRITERS = {"webdataset": write_webdataset, "streaming": write_streaming, "litdata": write_litdata}
PEERS = {peer.__name__: peer for peer in (webdataset, streaming, litdata, grain, spdl)}


def compare_peers(
    split: Split, batch: int, num_batches: int, workers: int, rounds: int
) -> tuple[dict[str, Figures], dict[str, str]]:
    """Figures of the loader and of each peer, the best of `rounds` in turns; and why others are missing."""
    absent = {name: "not installed" for name in PEERS if not is_installed(name)}
    first: dict[str, Figures] = {}
    timings: dict[str, Timing] = {}
    with TemporaryDirectory(prefix="maskshards-bench-") as scratch:
        loose = Path(scratch) / "loose"
        loose.mkdir()
        paths = list(islice(cycle(write_loose(split, loose)), batch * (num_batches + 2 * WARM_UP)))
        for name in ("maskshards", *(name for name in PEERS if name not in absent)):
            job = Job(paths, Path(scratch) / name, batch, workers)
            job.folder.mkdir()
            begin = partial(own, split.base, job) if name == "maskshards" else partial(PEERS[name], job)
            timing = partial(apart, time_stream, begin, batch, num_batches)
            try:
                if name in WRITERS:
                    apart(WRITERS[name], job)
                first[name] = timing()
            except Exception as error:  # whatever a package raises that does not fit to another one
                absent[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            else:
                timings[name] = timing
        others = best_of(timings, rounds - 1)
    lowest = {
        name: {key: min(value, others.get(name, figures)[key]) for key, value in figures.items()}
        for name, figures in first.items()
    }
    return lowest, absent


def is_installed(name: str) -> bool:
    """Whether a package can be found; spdl itself is a bare name space."""
    try:
        return find_spec("spdl.pipeline" if name == "spdl" else name) is not None
    except ImportError:
        return False


def apart(work: Callable[..., Any], *arguments: Any) -> Any:
    """What `work` returns in a fresh process, whose output is dropped."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_be_quiet) as pool:
        return pool.submit(work, *arguments).result()


def _be_quiet() -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    with contextlib.suppress(ImportError):
        import_module("torch").set_num_threads(1)
