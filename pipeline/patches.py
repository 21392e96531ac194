"""Arithmetic of the patch grid: cutting images into patches, and which patches of a view stay visible.

Positions are numbered row by row from the top left. The values of a patch are row-major with channels last.

Shape suffixes: N images, L grid positions, P values of a patch (p * p * 3), S side of an image in pixels.
"""

from __future__ import annotations

from functools import lru_cache
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchsieve.pipeline.config import Masks
from patchsieve.pipeline.randomness import KeyedRandom

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

CANDIDATES = 10
"""Candidates from which the next patch of a spread mask is taken."""


def visible_count(positions: int, mask_ratio: float) -> int:
    """Patches of a grid of `positions` that stay visible, V: 19 of 196 and 25 of 256 at a ratio of 0.9."""
    return int(positions * (1 - mask_ratio) + 1e-6)


def patchify(images_N3SS: Tensor, patch_size: int) -> Tensor:
    """Patches `[N, L, P]` of images `[N, 3, S, S]`, any dtype."""
    count, channels, height, width = images_N3SS.shape
    if channels != 3 or height != width or height % patch_size:
        raise ValueError(f"images {list(images_N3SS.shape)} cannot be cut into patches of {patch_size} px")
    grid = height // patch_size
    cut = images_N3SS.reshape(count, 3, grid, patch_size, grid, patch_size)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(count, grid * grid, patch_size * patch_size * 3)


def unpatchify(patches_NLP: Tensor, patch_size: int) -> Tensor:
    """Images `[N, 3, S, S]` of patches `[N, L, P]`: the inverse of `patchify`."""
    count, positions, values = patches_NLP.shape
    grid = round(positions**0.5)
    if grid * grid != positions or values != patch_size**2 * 3:
        raise ValueError(f"patches {list(patches_NLP.shape)} make no square image of {patch_size} px patches")
    cut = patches_NLP.reshape(count, grid, grid, patch_size, patch_size, 3)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(count, 3, grid * patch_size, grid * patch_size)


def hidden_positions(visible_NV: Tensor, positions: int) -> Tensor:
    """The other positions of the grid, ascending, int64 `[N, H]`; `visible_NV`: any integer type.

    Raises ValueError where a position is out of range or named twice.
    """
    count, visible = visible_NV.shape
    if visible_NV.numel() and (int(visible_NV.min()) < 0 or int(visible_NV.max()) >= positions):
        raise ValueError(f"visible patches must be numbered from 0 to {positions - 1}")
    hidden = torch.ones(count, positions, dtype=torch.bool, device=visible_NV.device)
    hidden.scatter_(1, visible_NV.long(), False)
    if int(hidden.sum()) != count * (positions - visible):
        raise ValueError("a visible patch is named twice in one view")
    return hidden.nonzero()[:, 1].reshape(count, positions - visible)


def others_of(visible: int) -> Tensor:
    """Row r: the places of the visible patches without r, int64 `[V, V - 1]`."""
    everyone = torch.arange(visible)
    return torch.stack([everyone[everyone != place] for place in range(visible)])


def take_patches(patches: Tensor, positions_NK: Tensor) -> Tensor:
    """The patches `[N, K, ...]` of `[N, L, ...]` at the given positions."""
    return patches[torch.arange(len(patches), device=patches.device)[:, None], positions_NK]


def normalise(pixels: Tensor) -> Tensor:
    """ImageNet-normalised float32 values of uint8 patches `[..., P]`: (x / 255 - mean) / deviation."""
    mean, deviation = _channel_constants(pixels.device)
    return pixels.reshape(*pixels.shape[:-1], -1, 3).div(255).sub_(mean).div_(deviation).flatten(-2)


def denormalise(values: Tensor) -> Tensor:
    """Patches `[..., P]` on a pixel scale from 0 to 1, not clipped: the inverse of `normalise`, over 255."""
    mean, deviation = _channel_constants(values.device)
    return values.reshape(*values.shape[:-1], -1, 3).mul(deviation).add_(mean).flatten(-2)


@lru_cache(maxsize=8)
def _channel_constants(device: torch.device) -> tuple[Tensor, Tensor]:
    # Kept, since a GPU has to finish what it is at before it takes them; for training, too, whoever asks first.
    with torch.inference_mode(False):
        return torch.tensor(IMAGENET_MEAN, device=device), torch.tensor(IMAGENET_STD, device=device)


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
