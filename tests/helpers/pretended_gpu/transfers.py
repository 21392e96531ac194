"""Results on their way from the device: nobody has them before somebody has waited."""

from __future__ import annotations

import threading

import torch
from torch import Tensor


class Transfers:
    """Copies to main memory that were asked for and not waited for yet.

    Until then their targets hold NaN, or the largest integer: a real one holds whatever was there before.
    """

    def __init__(self) -> None:
        self._under_way: list[tuple[Tensor, Tensor]] = []
        self._begun = self._ended = 0
        self._lock = threading.Lock()

    def begin(self, target: Tensor, values: Tensor) -> None:
        """Start a copy; neither is on the device."""
        with self._lock:
            self._under_way.append((target, values.clone()))
            self._begun += 1
            floating = target.is_floating_point()
            target.fill_(torch.nan if floating else torch.iinfo(target.dtype).max)

    def now(self) -> int:
        """This moment, for `end`."""
        return self._begun

    def end(self, moment: int | None = None) -> None:
        """Everything that was begun by that moment has arrived; None: by now."""
        with self._lock:
            while self._ended < (self._begun if moment is None else moment):
                target, values = self._under_way.pop(0)
                target.copy_(values)
                self._ended += 1
