"""SIGKILL at random moments, of builder or worker, then the same command: the same bytes, no stray file."""

import contextlib
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.preprocess.folder_build import build_words, contents


def command(root, out):
    more = ["--samples-per-shard", "3", "--workers", "2"]
    return [sys.executable, "-m", "preprocess", *build_words(root, out, *more)]


def children(pid):
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def run(words):
    return subprocess.run(words, capture_output=True, text=True, check=False)


def written(out):
    """Bytes in the folder, half-written files included; the progress of a build, whatever the clock says."""
    total = 0
    for path in out.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
            total += path.stat().st_size
    return total


def run_and_kill(words, out, until_bytes, of_worker):
    """Start a build and kill it, or one of its workers, once so much is written; whether there was one to
    kill.
    """
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as builder:
        while written(out) < until_bytes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                builder.wait(0.002)
                break
        victims = children(builder.pid) if of_worker else [builder.pid] * (builder.poll() is None)
        for victim in victims[-1:]:
            os.kill(victim, signal.SIGKILL)
    return bool(victims)


@pytest.fixture
def undisturbed(make_root, tmp_path):
    """(root, bytes of an undisturbed build, how many those are)."""
    root = make_root(training=60, validation=12, height=300, width=400)
    done = run(command(root, tmp_path / "undisturbed"))
    assert done.returncode == 0, done.stderr
    return root, contents(tmp_path / "undisturbed"), written(tmp_path / "undisturbed")


def test_one_build_killed_again_and_again(undisturbed, tmp_path):
    root, expected, in_all = undisturbed
    chance, out = random.Random(7), tmp_path / "out"
    moments = sorted(chance.uniform(0.05, 0.9) for _ in range(6))
    killed = sum(
        run_and_kill(command(root, out), out, in_all * moment, of_worker=number % 2)
        for number, moment in enumerate(moments)
    )
    assert killed >= 1
    done = run(command(root, out))
    assert done.returncode == 0, done.stderr
    assert contents(out) == expected


@pytest.mark.slow
def test_fifty_builds_killed_once(undisturbed, tmp_path):
    root, expected, in_all = undisturbed
    chance, killed = random.Random(8), 0
    for number in range(50):
        out = tmp_path / f"out-{number}"
        killed += run_and_kill(
            command(root, out), out, in_all * chance.uniform(0.0, 0.95), of_worker=number % 3 == 0
        )
        done = run(command(root, out))
        assert done.returncode == 0, done.stderr
        assert contents(out) == expected
    assert killed >= 40
