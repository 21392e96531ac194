"""Which patches of a view stay visible: drawn at random, as partitions of the grid, or spread over it.

Positions are numbered row by row from the top left.
"""

from __future__ import annotations

from functools import lru_cache
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from patchsieve.pipeline.randomness import KeyedRandom
from patchsieve.pipeline.row_config import Masks

CANDIDATES = 10
"""Candidates from which the next patch of a spread mask is taken."""


def draw_visible(
    seed: int, sample_key: str, view: int, *, grid: int, count: int, masks: Masks, partition: bool
) -> NDArray[np.int16]:
    """Positions of the visible patches of one view, ascending, int16 `[count]`; a pure function.

    `masks`: `uniform` draws any `count` patches alike; `spread` is best-candidate sampling (Mitchell,
    "Spectrally optimal sampling for distribution ray tracing", SIGGRAPH 1991): each next patch is the one of
    10 candidates, drawn with replacement from the patches still free, that lies farthest from those chosen;
    the first one of equals.

    `partition`: for views of one fixed crop. With G = ceil(L / count), views 0 .. G - 1 together show every
    patch, as do views G .. 2 G - 1 by another draw, and so on. Uniform: a permutation of the grid is cut into
    groups of `count` and the last group filled up from its start. Spread: the groups are chosen one after the
    other, each apart among the patches not yet used, and the last one filled up with patches that lie apart
    from its own.
    """
    positions = grid * grid
    if masks not in get_args(Masks):
        raise ValueError(f"masks {masks!r} are none of {', '.join(get_args(Masks))}")
    if not 0 < count <= positions:
        raise ValueError(f"{count} visible patches of a grid of {positions}")
    if partition:
        groups = -(-positions // count)
        # Copied, so that nobody changes what the cache holds.
        group: NDArray[np.int16] = _partition(seed, sample_key, view // groups, grid, count, masks)[
            view % groups
        ]
        return group.copy()
    random = KeyedRandom(seed, sample_key, "mask", view)
    if masks == "uniform":
        chosen = random.permutation(positions)[:count]
    else:
        chosen = _SpreadChoice(random, grid).choose(np.arange(positions), count)
    return np.sort(chosen).astype(np.int16)


@lru_cache(maxsize=256)
def _partition(
    seed: int, sample_key: str, number: int, grid: int, count: int, masks: Masks
) -> NDArray[np.int16]:
    """All groups of one partition, `[G, count]`, each ascending; cached: views of an image share it."""
    random = KeyedRandom(seed, sample_key, "partition", number)
    positions = grid * grid
    if masks == "uniform":
        order = random.permutation(positions)
        whole = -(-positions // count) * count
        groups = np.concatenate([order, order[: whole - positions]]).reshape(-1, count)
    else:
        groups = np.stack(_spread_groups(random, grid, count))
    return np.sort(groups, axis=1).astype(np.int16)


def _spread_groups(random: KeyedRandom, grid: int, count: int) -> list[NDArray[np.int64]]:
    everything = free = np.arange(grid * grid)
    groups: list[NDArray[np.int64]] = []
    while len(free):
        choice = _SpreadChoice(random, grid)
        group = choice.choose(free, min(count, len(free)))
        free = np.setdiff1d(free, group)
        if len(group) < count:
            others = np.setdiff1d(everything, group)
            group = np.concatenate([group, choice.choose(others, count - len(group))])
        groups.append(group)
    return groups


class _SpreadChoice:
    """Best-candidate sampling of grid positions, which remembers how near the chosen ones are."""

    def __init__(self, random: KeyedRandom, grid: int) -> None:
        self._random = random
        self._distance = _squared_distances(grid)
        self._nearest = np.full(grid * grid, np.iinfo(np.int64).max)

    def choose(self, free: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        """`count` of the `free` positions, in the order of choice."""
        chosen = np.empty(count, dtype=np.int64)
        draws = self._random.uniform(count * CANDIDATES).reshape(count, CANDIDATES)
        for i in range(count):
            places = (draws[i] * len(free)).astype(np.int64)
            # argmax takes the first of equals; before anything is chosen that is the first candidate.
            place = places[np.argmax(self._nearest[free[places]])]
            chosen[i] = free[place]
            self._nearest = np.minimum(self._nearest, self._distance[chosen[i]])
            free = np.delete(free, place)
        return chosen


@lru_cache(maxsize=8)
def _squared_distances(grid: int) -> NDArray[np.int64]:
    rows, columns = np.divmod(np.arange(grid * grid), grid)
    distance: NDArray[np.int64] = (rows[:, None] - rows) ** 2 + (columns[:, None] - columns) ** 2
    return distance
