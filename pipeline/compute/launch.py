"""Work that a device was given and may still be at, and the moments at which it gets to it.

A GPU takes what it is given into a queue. Whoever waits for its results before it is given more lets it stand still
meanwhile; so results are fetched in the queue's order, and asked for later.
"""

from __future__ import annotations

import dataclasses
import time

import torch
from torch import Tensor


class Stamp:
    """The moment at which a device gets to this point of its queue; a processor is there at once."""

    def __init__(self, device: torch.device) -> None:
        self._event: torch.cuda.Event | None = None
        self._reached = time.monotonic()
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(device))

    def wait(self) -> None:
        """Come back when the device is there."""
        if self._event is not None:
            self._event.synchronize()

    def seconds_until(self, later: Stamp) -> float:
        """Seconds from this moment to a later one of the same device, both past."""
        if self._event is not None:
            assert later._event is not None, "two devices"
            return float(self._event.elapsed_time(later._event)) / 1000
        return later._reached - self._reached


def fetch(tensor: Tensor) -> Tensor:
    """A copy in main memory, complete at a `Stamp` that is made afterwards; on a processor the tensor itself."""
    if tensor.device.type != "cuda":
        return tensor
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)


@dataclasses.dataclass(frozen=True)
class Launched:
    """A batch under way: `began` and `ended` are its first and last moment on the device."""

    scores: Tensor
    began: Stamp
    ended: Stamp

    def result(self) -> Tensor:
        """Scores in main memory, as soon as they are there."""
        self.ended.wait()
        return self.scores
