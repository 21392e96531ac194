"""`python -m tests.pipeline.compute.heap_run plain|keep THREADS`: prints the page faults of batches after the first."""

from __future__ import annotations

import resource
import sys
import threading

import torch

from patchsieve.pipeline.compute.device import keep_freed_memory

BATCHES = 8
SIZES = (2**20, 3 * 2**22)
"""Of a batch: blocks of 4 and of 48 MB."""
PAGES = 4 * sum(SIZES) // 4096


def _work() -> None:
    for _ in range(BATCHES):
        blocks = [torch.empty(size).fill_(1.0) for size in SIZES]
        del blocks


def _measure() -> None:
    _work()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    _work()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)


def main() -> None:
    """Measure in a new thread, beside others that have memory of their own."""
    how, others = sys.argv[1], int(sys.argv[2])
    begun, done = threading.Barrier(others + 1), threading.Event()

    def other() -> None:
        torch.empty(SIZES[0]).fill_(1.0)
        begun.wait()
        done.wait()

    for _ in range(others):
        threading.Thread(target=other, daemon=True).start()
    begun.wait()
    if how == "keep":
        assert keep_freed_memory()
    thread = threading.Thread(target=_measure)
    thread.start()
    thread.join()
    done.set()


if __name__ == "__main__":
    main()
