"""Order kept, errors in their turn, look-ahead bounded, and no thread left behind by any exit."""

import threading
from copy import deepcopy

import pytest

from maskshards.shards.errors import SampleError
from maskshards.shards.loading.ordered_map import InOrder, errors_as_values, in_order, values_as_errors


def live_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("maskshards")]


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_results_come_in_the_order_of_tasks(num_threads):
    gates = [threading.Event() for _ in range(6)]
    gates[5].set()

    def work(task):
        if num_threads > 1 and task % 2 == 0 and task < 5:
            gates[task].wait(600)  # an even task ends after its odd neighbour
        if task % 2:
            gates[task - 1].set()
        return task * 10

    assert list(in_order(range(6), work, num_threads, 4)) == [0, 10, 20, 30, 40, 50]
    assert not live_threads()


def test_an_error_is_raised_in_its_turn():
    def work(task):
        if task == 2:
            raise ValueError("task 2")
        return task

    results = in_order(range(9), work, 3, 4)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="task 2"):
        next(results)
    assert not live_threads()


def test_look_ahead_is_bounded():
    started = []
    results = in_order(iter(range(100)), lambda task: started.append(task) or task, 2, 3)
    assert next(results) == 0
    assert len(started) <= 4
    results.close()
    assert len(started) <= 4
    assert not live_threads()


def test_stopping_from_outside_ends_the_threads():
    stage = InOrder(lambda task: task, 2, 2)
    results = stage(iter(range(100)))
    next(results)
    assert live_threads()
    stage.close()
    stage.close()
    assert not live_threads()
    assert list(results) == []


def test_dropping_the_iterator_ends_the_threads():
    results = in_order(iter(range(100)), lambda task: task, 2, 2)
    next(results)
    del results
    assert not live_threads()


def test_an_error_of_the_task_source_ends_the_threads():
    def tasks():
        yield 1
        raise RuntimeError("source")

    with pytest.raises(RuntimeError, match="source"):
        list(in_order(tasks(), lambda task: task, 2, 5))
    assert not live_threads()


def test_without_threads_the_consumer_works():
    stage = InOrder(lambda task: threading.current_thread().name, 0, 1)
    assert list(stage([1, 2])) == [threading.current_thread().name] * 2


def test_an_error_crosses_to_another_process_whole():
    def results():
        yield 0
        raise SampleError("broken", shard="s.tar", key="k")

    arrived = values_as_errors(deepcopy(list(errors_as_values(results()))))  # goes by the same reduction
    assert next(arrived) == 0
    with pytest.raises(SampleError, match=r"s\.tar, sample 'k': broken") as caught:
        next(arrived)
    assert (caught.value.what, caught.value.shard, caught.value.key) == ("broken", "s.tar", "k")
