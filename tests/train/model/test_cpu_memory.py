"""What is freed is there again without a page fault, counted by the kernel in a process of its own."""

import platform
import subprocess
import sys

import pytest

COUNT = """
import resource, torch
from maskshards.train.model.cpu_memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(16, 1 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
without = faults()
assert keep_freed_memory()
faults()
print(without, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_freed_memory_needs_no_new_pages() -> None:
    done = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True)
    without, kept = map(int, done.stdout.split())
    assert without >= 4 * 32  # four times 64 MB, in pages of 2 MB at most
    assert kept < without / 10


def test_another_allocator_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from maskshards.train.model import cpu_memory

    monkeypatch.setattr(cpu_memory.ctypes, "CDLL", lambda _: object())
    assert not cpu_memory.keep_freed_memory()
