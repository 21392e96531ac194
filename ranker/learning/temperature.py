"""The softmax temperature that brings a ranker's scores nearest to the teacher's shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from torch import Tensor


def fit_temperature(
    views: Iterable[tuple[Tensor, Tensor]], *, low: float = 1e-3, high: float = 1e3, rounds: int = 80
) -> float:
    """Temperature whose softmax over the ranker's scores comes nearest to the teacher's shares of a view.

    `views`: (ranker scores `[N, V]`, pseudo-scores `[N, V]`). Minimises the cross-entropy of softmax(scores / T) with
    pseudo-score / sum, by golden-section search on log T: it has one minimum in 1 / T, being convex there.
    """
    held = [(scores.double(), _shares(targets.double())) for scores, targets in views]

    def cost(log_temperature: float) -> float:
        scale = math.exp(-log_temperature)
        return float(sum(-(shares * (scores * scale).log_softmax(1)).sum(1).sum() for scores, shares in held))

    return math.exp(_golden_section(cost, math.log(low), math.log(high), rounds))


def _shares(scores_NV: Tensor) -> Tensor:
    shifted = scores_NV - scores_NV.amin(1, keepdim=True).clamp(max=0)
    return shifted / shifted.sum(1, keepdim=True).clamp(min=1e-30)


def _golden_section(cost: Callable[[float], float], low: float, high: float, rounds: int) -> float:
    ratio = (math.sqrt(5) - 1) / 2
    a, b = high - ratio * (high - low), low + ratio * (high - low)
    cost_a, cost_b = cost(a), cost(b)
    for _ in range(rounds):
        if cost_a <= cost_b:
            high, b, cost_b = b, a, cost_a
            a = high - ratio * (high - low)
            cost_a = cost(a)
        else:
            low, a, cost_a = a, b, cost_b
            b = low + ratio * (high - low)
            cost_b = cost(b)
    return (low + high) / 2
