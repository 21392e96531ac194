"""How much work fits into memory at once: what there is, and which batch size pays."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

_log = logging.getLogger(__name__)

WORTH = 0.97
"""A larger batch is taken only when a view then takes less than this share of its time."""

FIRST_PATIENCE = 300.0
"""Seconds after which a size that did not fit is tried again."""

LARGEST_TENSOR = 2**31 - 1
"""Values of a tensor: some kernels of GPUs count them in 32 bits."""

PROBE_RUNS = 2
"""Times a batch size is run in a probe; the best one counts, since the first also pays for starting up."""

_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on a GPU or in PyTorch's allocator for processors."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _OUT_OF_MEMORY)


def available_memory() -> int:
    """Bytes of main memory that this process may count on: its threads' share of half of what is free.

    Linux grants memory that it does not have and kills the process later, so that backing off is no help
    there.
    """
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    limit, used = group / "memory.max", group / "memory.current"
    if limit.exists() and used.exists() and limit.read_text().strip() != "max":
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    share = min(1.0, torch.get_num_threads() / (os.cpu_count() or 1))
    return max(0, int(free * share / 2))


def choose_batch_size(seconds_per_view: Callable[[int], float], *, largest: int, budget: float) -> int:
    """The smallest batch size, a power of two, that is about as fast as any; `largest` is not exceeded.

    `seconds_per_view` runs a batch size `PROBE_RUNS` times and measures it; where it raises that memory ran
    out, smaller sizes are all there is. Sizes are doubled until two in a row gain less than 3 % or the next
    probe would take the time spent beyond `budget` seconds. If a single view does not fit, its exception goes
    up.
    """
    best, best_seconds = 1, seconds_per_view(1)
    spent = best_seconds * PROBE_RUNS
    size = 2
    while size <= min(largest, 4 * best) and spent + best_seconds * size * PROBE_RUNS <= budget:
        try:
            seconds = seconds_per_view(size)
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                break
            raise
        if seconds < WORTH * best_seconds:
            best, best_seconds = size, seconds
        spent += seconds * size * PROBE_RUNS
        size *= 2
    return best


def largest_good_batch(seconds_per_view: Callable[[int], float], sizes: Sequence[int]) -> int:
    """The largest of ascending sizes at which a view takes at most 1 / 0.97 of the time that it takes at the best.

    Fewer and larger batches leave Python's lock to the decoders. Sizes that do not fit into memory are out; if none
    does, the first one's exception goes up.
    """
    seconds: dict[int, float] = {}
    for size in sizes:
        try:
            seconds[size] = seconds_per_view(size)
        except (RuntimeError, MemoryError) as error:
            if not seconds or not is_out_of_memory(error):
                raise
            break
    best = min(seconds.values())
    return max(size for size, taken in seconds.items() if taken * WORTH <= best)


class PassSize:
    """How many sequences run at once: halved when memory runs out, and doubled again when that is a while ago.

    What else is on the device may have been there for a moment only; where it stays, the time between two attempts
    doubles.
    """

    def __init__(self, largest: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.now = self._largest = largest
        self._clock, self._since, self._patience = clock, 0.0, FIRST_PATIENCE

    def halve(self) -> None:
        """Memory has run out."""
        self.now //= 2
        self._since = self._clock()
        _log.warning(
            "out of memory: %d sequences at once from here on, %d are usual", self.now, self._largest
        )

    def grow(self) -> bool:
        """Before a batch: double the size if it is time to; whether it changed."""
        if self.now == self._largest or self._clock() - self._since < self._patience:
            return False
        self.now = min(self._largest, 2 * self.now)
        self._since, self._patience = self._clock(), 2 * self._patience
        _log.warning("%d sequences at once are tried again", self.now)
        return True
