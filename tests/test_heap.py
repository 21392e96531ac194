"""Memory that a process keeps: what is freed is there again without the system."""

from __future__ import annotations

import subprocess
import sys

import pytest

from patchrank.pipeline.heap import keep_freed_memory

PAGES = 4096  # of a block of 16 MB
BATCHES = 20
SCRIPT = f"""
import resource, sys, threading
import torch
from patchrank.pipeline.heap import keep_freed_memory

def work():
    for _ in range({BATCHES}):
        blocks = [torch.empty(2**22).fill_(1.0) for _ in range(4)]
        del blocks

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if sys.argv[1] == "keep":
    assert keep_freed_memory()
work()
thread = threading.Thread(target=work)
thread.start()
thread.join()
before = faults()
work()
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(faults() - before)
"""


def page_faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", SCRIPT, how], check=True, capture_output=True, text=True)
    return int(done.stdout)


def test_what_is_freed_is_kept_for_the_next_batch() -> None:
    if sys.platform != "linux":
        pytest.skip("glibc is Linux's")
    kept, plain = page_faults("keep"), page_faults("plain")
    assert kept < PAGES
    assert plain > 5 * PAGES, "nothing to gain here"


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert not keep_freed_memory()
