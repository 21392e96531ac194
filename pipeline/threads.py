"""Many calls at once that wait on a store, their results in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

# A store answers in tens of milliseconds.
THREADS = 32
_QUEUED = 1024

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def map_threads(call: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    """`call` of every item on a pool of threads, results in order; the first exception ends it."""
    pending: Sequence[_Item] = list(items)
    if not pending:
        return []
    results: list[_Result] = []
    pool = ThreadPoolExecutor(min(THREADS, len(pending)), thread_name_prefix="store")
    try:
        # A call that waits in the queue takes as much memory as its result.
        for start in range(0, len(pending), _QUEUED):
            results += pool.map(call, pending[start : start + _QUEUED])
    finally:
        # Without waiting: where a signal stops the run, a thread may be reading a shard for minutes.
        pool.shutdown(wait=False, cancel_futures=True)
    return results
