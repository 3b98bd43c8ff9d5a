"""SIGKILL at random moments, of builder or worker, then the same command: the same bytes, no stray file."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


def command(root, out):
    options = [
        "--dataset",
        "folder",
        "--root",
        str(root),
        "--classes",
        str(root / "classes.txt"),
        "--reduce-zero-label",
    ]
    more = ["--samples-per-shard", "3", "--workers", "2", "--quiet"]
    return [sys.executable, "-m", "preprocess", "build", *options, "--out", str(out), *more]


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def children(pid):
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def run(words):
    return subprocess.run(words, capture_output=True, text=True, check=False)


def run_and_kill(words, after_s, of_worker):
    """Start a build and kill it, or one of its workers, after some time; whether there was one to kill."""
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as builder:
        try:
            builder.wait(after_s)
        except subprocess.TimeoutExpired:
            victims = children(builder.pid) if of_worker else [builder.pid]
            for victim in victims[-1:]:
                os.kill(victim, signal.SIGKILL)
            return bool(victims)
    return False


@pytest.fixture
def undisturbed(make_root, tmp_path):
    """(root, bytes of an undisturbed build, how long that took)."""
    root = make_root(training=60, validation=12, height=300, width=400)
    start = time.monotonic()
    done = run(command(root, tmp_path / "undisturbed"))
    assert done.returncode == 0, done.stderr
    return root, contents(tmp_path / "undisturbed"), time.monotonic() - start


def test_one_build_killed_again_and_again(undisturbed, tmp_path):
    root, expected, takes_s = undisturbed
    chance, out = random.Random(7), tmp_path / "out"
    killed = sum(
        run_and_kill(command(root, out), takes_s * chance.uniform(0.3, 0.9), of_worker=number % 2)
        for number in range(6)
    )
    assert killed >= 1
    done = run(command(root, out))
    assert done.returncode == 0, done.stderr
    assert contents(out) == expected


@pytest.mark.slow
def test_fifty_builds_killed_once(undisturbed, tmp_path):
    root, expected, takes_s = undisturbed
    chance, killed = random.Random(8), 0
    for number in range(50):
        out = tmp_path / f"out-{number}"
        killed += run_and_kill(
            command(root, out), takes_s * chance.uniform(0.1, 1.0), of_worker=number % 3 == 0
        )
        done = run(command(root, out))
        assert done.returncode == 0, done.stderr
        assert contents(out) == expected
    assert killed >= 40
