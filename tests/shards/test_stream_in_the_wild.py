"""The stream under real launchers and real kills: torchrun with gloo, worker processes, SIGKILL at any
moment.
"""

import json
import os
import random
import runpy
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from maskshards.shards.loading.cache import CacheSettings
from maskshards.shards.loading.loader import Loader
from maskshards.shards.order.order import World

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
GLOBAL_BATCH = 24

PROGRAM = """
import json, os, sys
import torch.distributed as dist
from maskshards.shards.loading.loader import Loader
from maskshards.shards.order.order import World
from tests_rows import rows_of

folder, out, steps, position = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
world = World(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))
if world.num_ranks > 1:
    dist.init_process_group("gloo")
with Loader(folder, batch_per_rank=24 // world.num_ranks, global_batch=24, world=world, seed=7,
            position=position, end=position + 24 * steps) as loader, open(f"{out}.{world.rank}", "a") as log:
    for batch in loader:
        if world.num_ranks > 1:
            dist.barrier()
        log.write("".join(json.dumps(row) + "\\n" for row in rows_of(batch)))
        log.flush()
        os.fsync(log.fileno())
if world.num_ranks > 1:
    dist.destroy_process_group()
"""

ROWS = '''
import dataclasses, hashlib
import numpy as np
from maskshards.shards.augment.crop import CropSettings, draw_crops

SETTINGS = CropSettings(crop_px=(32, 32), image_px=32)

def rows_of(batch):
    """(position, key, digest of the sample's augmentation numbers) of each row."""
    draws = draw_crops(batch, seed=7, settings=SETTINGS)
    arrays = [np.asarray(getattr(draws, field.name)) for field in dataclasses.fields(draws)]
    arrays = [array for array in arrays if array.ndim and len(array) == len(batch)]
    assert len(arrays) > 2
    content = [b"".join(array[i].tobytes() for array in arrays) for i in range(len(batch))]
    digests = [hashlib.sha256(data).hexdigest() for data in content]
    return [list(row) for row in zip(batch.positions, batch.keys, digests)]
'''


@pytest.fixture(scope="module")
def folder(make_split):
    return str(make_split("wild", [9, 1, 0, 14, 6]).folder)


@pytest.fixture(scope="module")
def rows_of(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.py"
    path.write_text(ROWS)
    return runpy.run_path(str(path))["rows_of"]


@pytest.fixture(scope="module")
def reference(folder, rows_of):
    """Ten steps, read by one rank with one thread."""
    with Loader(folder, batch_per_rank=GLOBAL_BATCH, seed=7, threads=1, end=10 * GLOBAL_BATCH) as loader:
        return [row for batch in loader for row in rows_of(batch)]


@pytest.fixture
def program(tmp_path):
    (tmp_path / "tests_rows.py").write_text(ROWS)
    (tmp_path / "stream.py").write_text(PROGRAM)
    return tmp_path / "stream.py"


def environment(program):
    return {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}:{program.parent}", "OMP_NUM_THREADS": "1"}


def rows_in(out):
    """Every rank's log; a kill may leave a last line in pieces."""
    rows = []
    for path in out.parent.glob(f"{out.name}.*"):
        rows += [json.loads(line) for line in path.read_text().splitlines() if line.endswith("]")]
    return sorted(rows)


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_keys_and_augmentation_numbers_for_any_world(folder, reference, rows_of, num_ranks, threads):
    rows = []
    for rank in range(num_ranks):
        with Loader(
            folder,
            batch_per_rank=GLOBAL_BATCH // num_ranks,
            global_batch=GLOBAL_BATCH,
            seed=7,
            world=World(rank, num_ranks),
            end=4 * GLOBAL_BATCH,
            threads=threads,
        ) as loader:
            rows += [row for batch in loader for row in rows_of(batch)]
    assert sorted(rows) == reference[: 4 * GLOBAL_BATCH]


def test_torchrun_with_gloo_resumed_on_other_world_sizes(folder, reference, program, tmp_path):
    position = 0
    for num_ranks, steps in ((4, 3), (2, 3), (3, 4)):
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={num_ranks}",
            str(program),
            folder,
            str(tmp_path / "log"),
            str(steps),
            str(position),
        ]
        subprocess.run(command, env=environment(program), check=True, timeout=900)
        position += steps * GLOBAL_BATCH
    assert rows_in(tmp_path / "log") == reference


def test_killed_again_and_again_the_log_is_the_uninterrupted_one(folder, reference, program, tmp_path):
    """SIGKILL after a random number of steps; the next run continues after the last step that was logged
    whole.
    """
    chance, out, done, kills = random.Random(3), tmp_path / "log", [], 0
    while len(done) < len(reference):
        out.with_name("log.0").unlink(missing_ok=True)
        command = [
            sys.executable,
            str(program),
            folder,
            str(out),
            str((len(reference) - len(done)) // GLOBAL_BATCH),
            str(len(done)),
        ]
        child = subprocess.Popen(command, env=environment(program))
        wanted = chance.randint(1, 4)
        while child.poll() is None and len(rows_in(out)) < wanted * GLOBAL_BATCH:
            try:
                child.wait(0.01)
            except subprocess.TimeoutExpired:
                continue
        if child.poll() is None:
            os.kill(child.pid, signal.SIGKILL)
            kills += 1
        child.wait()
        rows = rows_in(out)
        done += rows[: len(rows) // GLOBAL_BATCH * GLOBAL_BATCH]
    assert done == reference
    assert kills >= 1


def test_an_interrupt_leaves_no_process_behind(folder, program):
    """Ctrl-C while worker processes read: the program and all its children end."""
    text = (
        "import sys\nfrom torch.utils.data import DataLoader\n"
        "from maskshards.shards.loading.loader import Loader\n"
        "loader = Loader(sys.argv[1], batch_per_rank=4)\n"
        "for number, batch in enumerate(DataLoader(loader, batch_size=None, num_workers=2)):\n"
        "    print(number, flush=True)\n"
    )
    path = program.with_name("endless.py")
    path.write_text(text)
    child = subprocess.Popen(
        [sys.executable, str(path), folder],
        env=environment(program),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        # A suite that runs in the background ignores SIGINT, and its children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    with child.stdout:
        for _ in islice(child.stdout, 5):
            pass
        os.kill(child.pid, signal.SIGINT)
        child.stdout.read()
    assert child.wait(900) != 0
    command = ["ps", "-o", "args=", "-s", str(child.pid)]
    assert "endless" not in subprocess.run(command, capture_output=True, text=True).stdout


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes_share_a_cache_and_stop_at_the_end(make_split, serve, tmp_path, take_keys, method):
    made = make_split("shared", [6, 5, 7])
    server = serve(made.folder)
    settings = {"batch_per_rank": 3, "global_batch": 6, "end": 18}
    loader = Loader(server.url, **settings, cache=CacheSettings(tmp_path / "cache"))
    batches = DataLoader(loader, batch_size=None, num_workers=2, multiprocessing_context=method)
    got = [key for batch in batches for key in batch.keys]
    assert got == take_keys(str(made.folder), 99, **settings)
    assert len(got) == 18
    tars = {shard.name: shard.bytes for shard in made.manifest.shards}
    assert {name: sent for name, sent in server.bytes_sent.items() if name in tars} == tars
