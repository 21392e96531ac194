"""What pixels and place alone say of a patch: nothing learned, nothing seen of other patches.

Pixels count on a scale from 0 to 1. Sums are of whole numbers in float64, hence exact: a flat patch has a variance of
exactly 0, and equal patches have equal features on every machine.

Shape suffixes: L grid positions, P values of a patch (p * p * 3), F features.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FEATURES = (
    "variance",
    "log_variance",
    "gradient",
    "log_gradient",
    "luminance",
    "squared_luminance",
    "contrast",
)
"""Columns of `pixel_features`."""

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in luminance (ITU-R BT.601)."""

LOG_FLOOR = 1 / 255**2
"""Added below a logarithm: a difference of one level, squared."""

_POTENTIAL = 10**12


def patch_side(values: int) -> int:
    """Pixels along a side of patches of P values; ValueError where that is no square RGB patch of at least 2 px."""
    side = math.isqrt(values // 3)
    if side < 2 or side * side * 3 != values:
        raise ValueError(f"{values} values are no square RGB patch of at least 2 x 2 pixels")
    return side


def pixel_variance(patches: Tensor) -> Tensor:
    """Variance over the pixels of uint8 patches `[..., P]`, mean of the three channels, float64 `[...]`."""
    pixels = _pixels(patches).flatten(-3, -2)
    count = pixels.shape[-2]
    exact = count * pixels.square().sum(-2) - pixels.sum(-2).square()
    return exact.mean(-1) / (count * 255) ** 2


def gradient_energy(patches: Tensor) -> Tensor:
    """Mean square of the steps to the next pixel right and to the next below, both added, float64 `[...]`.

    Of uint8 patches `[..., P]`, within each patch alone, mean of the three channels.
    """
    pixels = _pixels(patches)
    side = pixels.shape[-2]
    right = pixels.diff(dim=-2).square().sum((-3, -2, -1))
    below = pixels.diff(dim=-3).square().sum((-3, -2, -1))
    return (right + below) / (3 * side * (side - 1) * 255**2)


def edge_strength(patches_LP: Tensor, grid: int) -> Tensor:
    """How much a patch differs from its surroundings and within itself, float64 `[L]`, of uint8 patches `[L, P]`.

    The mean squared step of its mean colour to its four neighbours (fewer at the rim), plus its variance;
    mean of the three channels.
    """
    colour = _pixels(patches_LP).mean((-3, -2)).reshape(grid, grid, 3) / 255
    total, count = torch.zeros(grid, grid, dtype=torch.float64), torch.zeros(grid, grid)
    for axis in (0, 1):
        step = colour.diff(dim=axis).square().mean(-1)
        for near in (slice(None, -1), slice(1, None)):
            here = (slice(None),) * axis + (near,)
            total[here] += step
            count[here] += 1
    return (total / count.clamp(min=1)).reshape(-1) + pixel_variance(patches_LP)


def pixel_features(patches: Tensor) -> Tensor:
    """The `FEATURES` of uint8 patches `[..., P]`, float64 `[..., F]`.

    `luminance`: mean of the pixels' luminance; `contrast`: its largest value less its smallest.
    """
    luma = (_pixels(patches) @ torch.tensor(LUMA, dtype=torch.float64, device=patches.device)).flatten(-2)
    luma = luma / 255
    variance, gradient, luminance = pixel_variance(patches), gradient_energy(patches), luma.mean(-1)
    columns = {
        "variance": variance,
        "log_variance": (variance + LOG_FLOOR).log(),
        "gradient": gradient,
        "log_gradient": (gradient + LOG_FLOOR).log(),
        "luminance": luminance,
        "squared_luminance": luminance.square(),
        "contrast": luma.amax(-1) - luma.amin(-1),
    }
    return torch.stack([columns[name] for name in FEATURES], dim=-1)


def centre_distance(grid: int) -> NDArray[np.float64]:
    """Distance of every position from the middle of the grid, in patches, `[L]`."""
    offset = np.arange(grid) - (grid - 1) / 2
    distance: NDArray[np.float64] = np.hypot(offset[:, None], offset[None, :])
    return distance.reshape(-1)


def even_order(grid: int) -> NDArray[np.int64]:
    """All positions in an order whose every beginning is spread evenly over the grid, `[L]`.

    The middle comes first; each next position is the free one where those before it have the least potential, the sum
    of 1 / squared distance with opposite edges joined (a greedy minimal-energy, or Leja, sequence); ties by index.
    """
    step = np.abs(np.arange(grid)[:, None] - np.arange(grid)[None, :])
    squared = np.minimum(step, grid - step) ** 2
    row, column = np.divmod(np.arange(grid * grid), grid)
    energy = np.zeros(grid * grid, dtype=np.int64)
    order = np.empty(grid * grid, dtype=np.int64)
    chosen = grid // 2 * grid + grid // 2
    for place in range(grid * grid):
        order[place] = chosen
        # Whole numbers, so that equal potentials are equal whatever the order of the sum.
        energy += _POTENTIAL // np.maximum(squared[row[chosen], row] + squared[column[chosen], column], 1)
        energy[chosen] = np.iinfo(np.int64).max // 2
        chosen = int(np.argmin(energy))
    return order


def _pixels(patches: Tensor) -> Tensor:
    """Levels as float64 `[..., p, p, 3]`."""
    if patches.dtype != torch.uint8:
        raise ValueError(f"patches are {patches.dtype}, not uint8")
    side = patch_side(patches.shape[-1])
    return patches.reshape(*patches.shape[:-1], side, side, 3).double()
