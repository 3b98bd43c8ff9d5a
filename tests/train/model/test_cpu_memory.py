"""What is freed stays the own memory of a process, as the kernel lists it, tried in a process of its own."""

import os
import platform

import pytest

from tests import forked

LOOK = """
import torch
from maskshards.train.model.cpu_memory import keep_freed_memory

def kept(address):
    for line in open("/proc/self/maps"):
        start, end = (int(word, 16) for word in line.split()[0].split("-"))
        if start <= address < end:
            return line.rstrip().endswith("[heap]")
    return False

def look():
    block = torch.ones(16, 1 << 20)
    address = block.data_ptr()
    before = kept(address)
    del block
    return before, kept(address)

without = look()
assert keep_freed_memory()
print(without, look())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_freed_memory_is_not_given_back() -> None:
    done = forked.run(["-c", LOOK], env=dict(os.environ))
    assert (done.stdout, done.stderr) == ("(False, False) (True, True)\n", "")


def test_another_allocator_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from maskshards.train.model import cpu_memory

    monkeypatch.setattr(cpu_memory.ctypes, "CDLL", lambda _: object())
    assert not cpu_memory.keep_freed_memory()
