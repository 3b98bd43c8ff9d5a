"""Tasks on a Dask cluster (extra `dask`): the same shards, made by whichever workers the scheduler has.

The cluster's workers need this package and see the source and the destination under the names that the
builder uses. Tasks can be done twice without harm, so a worker that dies costs its task's time and nothing
else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

from maskshards.preprocess.errors import BuildError

TASKS_PER_THREAD = 2  # handed out ahead, so that no worker waits for the builder
CONNECT_S = 30
Task = TypeVar("Task")
Outcome = TypeVar("Outcome")


def run_on_dask(do: Callable[[Task], Outcome], tasks: Iterable[Task], scheduler: str) -> Iterator[Outcome]:
    """Outcomes in the order in which tasks finish.

    An error of a task is raised here; the others are cancelled.
    """
    try:
        from distributed import Client, KilledWorker, as_completed
    except ImportError as error:
        raise BuildError("--executor dask needs the extra: pip install 'maskshards[dask]'") from error
    waiting = iter(tasks)
    with Client(scheduler, timeout=CONNECT_S, set_as_default=False) as client:
        threads = sum(client.nthreads().values())
        if not threads:
            raise BuildError(
                f"the Dask scheduler at {scheduler} has no workers; start some: dask worker {scheduler}"
            )
        ahead = islice(waiting, TASKS_PER_THREAD * threads)
        running = as_completed([client.submit(do, task, pure=False) for task in ahead], loop=client.loop)
        try:
            for future in running:
                yield future.result()
                for task in islice(waiting, 1):
                    running.add(client.submit(do, task, pure=False))
        except KilledWorker as error:
            raise BuildError(
                f"a task killed its Dask worker several times, out of memory perhaps: {error};"
                " finished shards are kept: the same command goes on from there"
            ) from error
        finally:
            client.cancel(list(running.futures))
