"""Which patches of a view stay visible: drawn at random, as partitions of the grid, or spread over it.

Positions are numbered row by row from the top left.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    """Positions of the visible patches of one view, ascending, int16 `[count]`; see `draw_masks`."""
    masks_NV = draw_masks(seed, sample_key, [view], grid=grid, count=count, masks=masks, partition=partition)
    visible: NDArray[np.int16] = masks_NV[0]
    return visible


def draw_masks(
    seed: int, sample_key: str, views: Sequence[int], *, grid: int, count: int, masks: Masks, partition: bool
) -> NDArray[np.int16]:
    """Positions of the visible patches of views of one image, ascending, int16 `[views, count]`; a pure function.

    What a view gets does not depend on which others are drawn with it; together they take less time.

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
        return np.stack(
            [
                _partition(seed, sample_key, view // groups, grid, count, masks)[view % groups]
                for view in views
            ]
        )
    randoms = [KeyedRandom(seed, sample_key, "mask", view) for view in views]
    if masks == "uniform":
        chosen = np.stack([random.permutation(positions)[:count] for random in randoms])
    else:
        free = np.broadcast_to(np.arange(positions), (len(views), positions))
        chosen = _SpreadChoice(randoms, grid).choose(free, count)
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
        choice = _SpreadChoice([random], grid)
        group = choice.choose(free[None], min(count, len(free)))[0]
        free = np.setdiff1d(free, group)
        if len(group) < count:
            others = np.setdiff1d(everything, group)
            group = np.concatenate([group, choice.choose(others[None], count - len(group))[0]])
        groups.append(group)
    return groups


class _SpreadChoice:
    """Best-candidate sampling of grid positions, each for a random stream, which remembers how near the chosen are."""

    def __init__(self, randoms: Sequence[KeyedRandom], grid: int) -> None:
        self._randoms = randoms
        self._distance = _squared_distances(grid)
        self._nearest_NL = np.full((len(randoms), grid * grid), np.iinfo(np.int64).max)

    def choose(self, free_NF: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        """`count` of each stream's free positions, in the order of choice, `[N, count]`."""
        every = np.arange(len(self._randoms))
        chosen = np.empty((len(every), count), dtype=np.int64)
        draws = [random.uniform(count * CANDIDATES).reshape(count, CANDIDATES) for random in self._randoms]
        for i, draw_NC in enumerate(np.stack(draws, axis=1)):
            places_NC = (draw_NC * free_NF.shape[1]).astype(np.int64)
            candidates_NC = np.take_along_axis(free_NF, places_NC, 1)
            # argmax takes the first of equals; before anything is chosen that is the first candidate.
            best_N = np.take_along_axis(self._nearest_NL, candidates_NC, 1).argmax(1)
            chosen[:, i] = candidates_NC[every, best_N]
            np.minimum(self._nearest_NL, self._distance[chosen[:, i]], out=self._nearest_NL)
            left = free_NF != chosen[:, i, None]
            free_NF = free_NF[left].reshape(len(every), -1)
        return chosen


@lru_cache(maxsize=8)
def _squared_distances(grid: int) -> NDArray[np.int64]:
    rows, columns = np.divmod(np.arange(grid * grid), grid)
    distance: NDArray[np.int64] = (rows[:, None] - rows) ** 2 + (columns[:, None] - columns) ** 2
    return distance
