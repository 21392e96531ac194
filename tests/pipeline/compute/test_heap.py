"""Memory that a process keeps: what is freed is there again without the system."""

from __future__ import annotations

import subprocess
import sys

import pytest

from patchsieve.pipeline.compute.device import keep_freed_memory

PAGES = 13312  # of a batch: blocks of 4 and of 48 MB
BATCHES = 8
SCRIPT = f"""
import resource, sys, threading
import torch
from patchsieve.pipeline.compute.device import keep_freed_memory

def work():
    for _ in range({BATCHES}):
        blocks = [torch.empty(size).fill_(1.0) for size in (2**20, 3 * 2**22)]
        del blocks

def measure():
    work()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    work()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

how, others = sys.argv[1], int(sys.argv[2])
begun, done = threading.Barrier(others + 1), threading.Event()

def other():
    torch.empty(2**20).fill_(1.0)
    begun.wait()
    done.wait()

for _ in range(others):
    threading.Thread(target=other, daemon=True).start()
begun.wait()
if how == "keep":
    assert keep_freed_memory()
thread = threading.Thread(target=measure)
thread.start()
thread.join()
done.set()
"""


def page_faults(how: str, *, others: int = 0) -> int:
    command = [sys.executable, "-c", SCRIPT, how, str(others)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
def test_what_is_freed_is_kept_for_the_next_batch() -> None:
    assert page_faults("plain") > 3 * PAGES
    # As in a process of Ray's, whose threads have their heaps already.
    assert page_faults("keep", others=32) < PAGES


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert not keep_freed_memory()
