"""Order kept, errors in their turn, look-ahead bounded, and no thread left behind by any exit."""

import os
import sys
import threading

import pytest

from maskshards.shards.loading.ordered_map import InOrder, in_order
from tests import forked


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


def test_stopping_from_another_thread_ends_a_wait():
    begun, gate = threading.Event(), threading.Event()

    def work(task):
        begun.set()
        gate.wait(600)
        return task

    ahead = InOrder(iter(range(100)), work, 1, 3)
    found = []
    consumer = threading.Thread(target=lambda: found.extend(ahead))
    consumer.start()
    begun.wait(600)
    closer = threading.Thread(target=ahead.close)
    closer.start()
    gate.set()  # the task in work ends; nobody works on the others any more
    closer.join(600)
    consumer.join(600)
    assert not consumer.is_alive()
    assert found in ([], [0])
    assert list(ahead) == []
    ahead.close()
    assert not live_threads()


def gone(threads):
    """Wait for their end, and say whether it came."""
    for thread in threads:
        thread.join(600)
    return not live_threads()


def test_dropping_the_iterator_ends_the_threads():
    results = in_order(iter(range(100)), lambda task: task, 2, 2)
    next(results)
    threads = live_threads()
    assert len(threads) == 3
    del results
    assert gone(threads)


def test_dropping_the_iterator_ends_what_all_threads_wait_for():
    silent, closed = threading.Barrier(3), threading.Event()

    def work(task):
        if task:
            silent.wait(600)
            assert closed.wait(600)
        return task

    results = in_order(iter(range(100)), work, 2, 2, closed.set)
    assert next(results) == 0
    silent.wait(600)
    threads = live_threads()
    del results
    assert gone(threads)
    assert closed.is_set()


def test_nothing_of_ours_runs_while_an_iterator_is_dropped():
    """Ctrl-C in code that runs for the collector is printed and lost."""
    results, calls = in_order(iter(range(100)), lambda task: task, 2, 2), []
    next(results)
    threads = live_threads()
    sys.setprofile(lambda frame, event, _: calls.append((event, frame.f_code.co_name)))
    del results
    sys.setprofile(None)
    assert [call for call in calls if call[0] == "call"] == []
    assert gone(threads)


def test_an_interrupt_in_the_middle_of_stopping_leaves_closing_its_work():
    ahead = InOrder(iter(range(100)), lambda task: task, 2, 2)
    results = iter(ahead)
    next(results)
    ahead._closed = True  # as far as it came
    ahead.close()
    assert not live_threads()
    assert list(results) == []


def test_a_forked_child_is_told_that_the_threads_are_not_its_own():
    results = in_order(iter(range(100)), lambda task: task, 2, 2)
    next(results)
    child = os.fork()
    if not child:
        try:
            next(results)
        except RuntimeError:
            os._exit(7)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert next(results) == 1
    results.close()
    assert not live_threads()


def test_an_error_of_the_task_source_ends_the_threads():
    def tasks():
        yield 1
        raise RuntimeError("source")

    with pytest.raises(RuntimeError, match="source"):
        list(in_order(tasks(), lambda task: task, 2, 5))
    assert not live_threads()


def test_it_tells_whether_asking_would_wait():
    gate, done = threading.Event(), threading.Event()

    def work(task):
        if task == 1:
            gate.wait(600)
        if task == 2:
            done.set()
        return task

    ahead = InOrder(range(3), work, 2, 2)
    try:
        assert not ahead.ready()  # nothing was asked for yet
        results = iter(ahead)
        assert next(results) == 0
        assert done.wait(600)
        assert not ahead.ready()  # task 1 is not done, whatever task 2 is
        gate.set()
        assert next(results) == 1
        assert next(results) == 2
        assert not ahead.ready()
    finally:
        gate.set()
        ahead.close()


def test_at_the_interpreters_end_nothing_is_shut_down_again(monkeypatch):
    """Its modules may be gone by then, and its threads are: a word on stderr would be the program's last."""
    ended = []
    ahead = InOrder(range(9), str, 2, 3, lambda: ended.append("interrupted"))
    results = iter(ahead)
    assert next(results) == "0"
    threads = live_threads()
    with monkeypatch.context() as patched:
        patched.setattr(sys, "is_finalizing", lambda: True)
        ahead.close()
    assert ended == []
    for queue in (ahead._queue, ahead._dropped):
        queue.put(None)  # as if the interpreter had ended them
    assert gone(threads)


def test_closing_interrupts_tasks_until_they_have_ended():
    """A task that waits twice: the first interruption finds it in its first wait, another in its second."""
    waits, ended = [threading.Event(), threading.Event()], []

    def work(task):
        for wait in waits:
            ended.append(wait.wait(600))
        return task

    remaining = list(waits)
    ahead = InOrder(iter(range(9)), work, 1, 2, lambda: remaining.pop(0).set() if remaining else None)
    thread = threading.Thread(target=lambda: list(ahead))
    thread.start()
    ahead.close()
    thread.join(600)
    assert not thread.is_alive()
    assert ended in ([], [True, True])  # nothing was begun, or its waits were ended


def test_an_error_of_a_task_that_closing_ended_is_not_raised():
    begun, end = threading.Event(), threading.Event()

    def work(task):
        begun.set()
        assert end.wait(600)
        raise OSError("the store was closed")

    got = []
    ahead = InOrder(iter(range(9)), work, 1, 2, end.set)
    thread = threading.Thread(target=lambda: got.append(list(ahead)))
    thread.start()
    assert begun.wait(600)
    ahead.close()
    thread.join(600)
    assert got == [[]]


def test_dropping_waits_for_nothing_and_closing_for_what_is_in_hand():
    begun, goes_on = threading.Event(), threading.Event()

    def work(task):
        if task:
            begun.set()
            goes_on.wait(600)
        return task

    ahead = InOrder(range(9), work, 1, 4)
    results = iter(ahead)
    assert next(results) == 0
    assert begun.wait(600)
    del results
    assert not goes_on.is_set()  # else it would have waited for the task
    goes_on.set()
    ahead.close()
    assert not live_threads()


# Ctrl-C at each point where the interpreter may raise it: before the step that follows a call, a function's
# beginning or a jump back. What is left behind there would keep the program from ending.
EVERY_INTERRUPT = """
import dis, os, sys, threading
from maskshards.shards.loading.ordered_map import in_order

def points(code, ours=("threading.py", "ordered_map.py")):
    steps = list(dis.get_instructions(code)) if code.co_filename.endswith(ours) else []
    return {
        step.offset
        for before, step in zip(steps, steps[1:])
        if before.opname in ("CALL", "CALL_FUNCTION_EX", "RESUME", "JUMP_BACKWARD")
    }

def trace(frame, event, _):
    global to_come
    frame.f_trace_opcodes, frame.f_trace_lines = True, False
    if frame.f_code not in known:
        known[frame.f_code] = points(frame.f_code)
    if event == "opcode" and frame.f_lasti in known[frame.f_code]:
        to_come -= 1
        if not to_come:
            sys.settrace(None)
            raise KeyboardInterrupt
    return trace

def read():
    results = in_order(range(5), str, 2, 2)
    assert [next(results), next(results)] == ["0", "1"]
    results.close()

known, number, interrupted = {}, 0, 0
sys._getframe().f_trace_opcodes = True  # Python 3.12 asks as tracing begins whether a frame wants them
read()
while number == interrupted:
    number += 1
    to_come = number
    try:
        sys.settrace(trace)
        read()
    except KeyboardInterrupt:
        interrupted += 1
    finally:
        sys.settrace(None)
    for thread in threading.enumerate():
        if thread.name.startswith("maskshards"):
            thread.join(60)
            if thread.is_alive() or not thread._started.is_set():
                print("interrupted", number, "times; left", thread, flush=True)
                os._exit(1)
print("interrupted", interrupted, "of", number - to_come)
"""


def test_an_interrupt_anywhere_leaves_nothing_that_the_end_of_the_program_would_wait_for():
    done = forked.run(["-c", EVERY_INTERRUPT], env={**os.environ})
    assert (done.stderr, done.returncode) == ("", 0), done.stdout
    _, interrupted, _, points = done.stdout.split()
    assert int(interrupted) == int(points) > 50
