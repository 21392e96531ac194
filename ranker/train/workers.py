"""What the workers of a training tell each other, by torch.distributed; alone, a worker talks to nobody."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Worker:
    """Worker `rank` of `ranks`; with more than one, torch.distributed is set up, and all call the same in turn.

    `decode_threads`: those that decode views beside the steps.
    """

    rank: int = 0
    ranks: int = 1
    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))
    decode_threads: int = 1

    def agreed(self, decision: bool) -> bool:
        """The decision of worker 0."""
        if self.ranks == 1:
            return decision
        shared = torch.tensor(int(decision), device=self.device)
        torch.distributed.broadcast(shared, 0)
        return bool(shared)

    def mean(self, values: Sequence[float]) -> list[float]:
        """The mean of each value over the workers."""
        if self.ranks == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(total)
        return [float(value) / self.ranks for value in total]

    def gather(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """The rows of all workers, `[n, V]` each, in the order of workers."""
        if self.ranks == 1:
            return rows
        counts = torch.zeros(self.ranks, dtype=torch.int64, device=self.device)
        counts[self.rank] = len(rows)
        torch.distributed.all_reduce(counts)
        # Of equal size, as every backend can gather them.
        padded = torch.zeros(int(counts.max()), rows.shape[1], device=self.device)
        padded[: len(rows)] = torch.from_numpy(rows)
        parts = [torch.empty_like(padded) for _ in range(self.ranks)]
        torch.distributed.all_gather(parts, padded)
        kept = [part[: int(count)].cpu().numpy() for part, count in zip(parts, counts, strict=True)]
        return np.concatenate(kept)
