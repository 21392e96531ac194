"""The ranking losses as their papers write them: loops over Python floats, slow and plain."""

from __future__ import annotations

import math
from collections.abc import Sequence

Rows = Sequence[Sequence[float]]


def _log_sum_exp(values: Sequence[float]) -> float:
    highest = max(values)
    return highest + math.log(math.fsum(math.exp(value - highest) for value in values))


def _softplus(value: float) -> float:
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))


def descending(targets: Sequence[float]) -> list[int]:
    return sorted(range(len(targets)), key=lambda i: (-targets[i], i))


def likelihood(scores: Sequence[float], order: Sequence[int]) -> float:
    """Negative log-probability of drawing the items in this order, each in proportion to exp(score)."""
    left = list(order)
    total = 0.0
    while left:
        total += _log_sum_exp([scores[i] for i in left]) - scores[left[0]]
        left.pop(0)
    return total


def cross_entropy(scores: Sequence[float], targets: Sequence[float]) -> float:
    total = 0.0
    for score, target in zip(scores, targets, strict=True):
        wanted = math.exp(target - _log_sum_exp(targets))
        total -= wanted * (score - _log_sum_exp(scores))
    return total


def pair(
    score: float, other: float, target: float, other_target: float, threshold: float, sigma: float
) -> float:
    """Cross entropy of one pair; p = 1 / (1 + exp(-sigma * difference))."""
    lead = target - other_target
    wanted = 0.5
    if lead != 0 and abs(lead) >= threshold:
        wanted = 1.0 if lead > 0 else 0.0
    logit = sigma * (score - other)
    return wanted * _softplus(-logit) + (1 - wanted) * _softplus(logit)


def list_mle(scores: Rows, targets: Rows) -> float:
    return math.fsum(likelihood(s, descending(t)) for s, t in zip(scores, targets, strict=True)) / len(scores)


def list_mle_of(scores: Rows, targets: Rows, chosen: Sequence[Sequence[int]]) -> float:
    """ListMLE of the chosen positions of every row."""
    part_scores = [[row[i] for i in keep] for row, keep in zip(scores, chosen, strict=True)]
    part_targets = [[row[i] for i in keep] for row, keep in zip(targets, chosen, strict=True)]
    return list_mle(part_scores, part_targets)


def list_net(scores: Rows, targets: Rows) -> float:
    total = math.fsum(cross_entropy(s, t) for s, t in zip(scores, targets, strict=True))
    return total / (len(scores) * len(scores[0]))


def rank_net(scores: Rows, targets: Rows, threshold: float = 0.001, sigma: float = 1.0) -> float:
    terms = [
        pair(s[i], s[j], t[i], t[j], threshold, sigma)
        for s, t in zip(scores, targets, strict=True)
        for i in range(len(s))
        for j in range(len(s))
    ]
    return math.fsum(terms) / len(terms) / 2


def mse(scores: Rows, targets: Rows) -> float:
    terms = [(a - b) ** 2 for s, t in zip(scores, targets, strict=True) for a, b in zip(s, t, strict=True)]
    return math.fsum(terms) / len(terms)


def focused(scores: Rows, targets: Rows, k: int = 10, threshold: float = 0.001, sigma: float = 1.0) -> float:
    likelihoods, terms = [], []
    for s, t in zip(scores, targets, strict=True):
        order = descending(t)
        likelihoods.append(likelihood(s, order[:k]))
        terms += [pair(s[i], s[j], t[i], t[j], threshold, sigma) for i in order[:k] for j in order[k:]]
    return math.fsum(likelihoods) / len(likelihoods) + math.fsum(terms) / len(terms) / 2
