"""Pixel features against plain loops over pixels, and the orders that place alone gives."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from patchsieve.pipeline.images.patches import patchify
from patchsieve.ranker.baselines.features import (
    FEATURES,
    centre_distance,
    edge_strength,
    even_order,
    gradient_energy,
    pixel_features,
    pixel_variance,
)
from tests.helpers.pixel_tables import PATCH, view_pixels


def naive_features(patch: np.ndarray) -> dict[str, float]:
    """The features of one patch `[p, p, 3]`, pixel by pixel."""
    side = len(patch)
    levels = patch.astype(float) / 255
    variance = sum(float(np.var(levels[:, :, channel])) for channel in range(3)) / 3
    numbers = [(a, b, c) for a in range(side) for b in range(side - 1) for c in range(3)]
    right = [(levels[a, b + 1, c] - levels[a, b, c]) ** 2 for a, b, c in numbers]
    below = [(levels[b + 1, a, c] - levels[b, a, c]) ** 2 for a, b, c in numbers]
    gradient = sum(right) / len(right) + sum(below) / len(below)
    luma = [0.299 * r + 0.587 * g + 0.114 * b for r, g, b in levels.reshape(-1, 3)]
    luminance = sum(luma) / len(luma)
    return {
        "variance": variance,
        "log_variance": math.log(variance + 1 / 255**2),
        "gradient": gradient,
        "log_gradient": math.log(gradient + 1 / 255**2),
        "luminance": luminance,
        "squared_luminance": luminance**2,
        "contrast": max(luma) - min(luma),
    }


def test_features_are_those_of_a_loop_over_pixels() -> None:
    patches = patchify(view_pixels(3, 0)[None], PATCH)
    found = pixel_features(patches)
    assert found.shape == (1, patches.shape[1], len(FEATURES))
    for place, patch in enumerate(patches[0]):
        expected = naive_features(patch.reshape(PATCH, PATCH, 3).numpy())
        assert dict(zip(FEATURES, found[0, place].tolist(), strict=True)) == pytest.approx(expected, rel=1e-9)
    assert torch.equal(found[..., FEATURES.index("variance")], pixel_variance(patches))
    assert torch.equal(found[..., FEATURES.index("gradient")], gradient_energy(patches))


@pytest.mark.parametrize("level", [0, 77, 255])
def test_flat_patches_have_no_variance_and_no_gradient(level: int) -> None:
    flat = torch.full((2, 16 * 16 * 3), level, dtype=torch.uint8)
    assert pixel_variance(flat).tolist() == gradient_energy(flat).tolist() == [0.0, 0.0]


def test_gradient_tells_texture_from_a_single_edge_of_the_same_variance() -> None:
    edge, checks = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    edge[:, 4:] = 200
    checks[::2, ::2] = checks[1::2, 1::2] = 200
    patches = torch.from_numpy(np.stack([edge, checks]).reshape(2, -1))
    assert pixel_variance(patches)[0] == pixel_variance(patches)[1]
    assert gradient_energy(patches)[1] > 10 * gradient_energy(patches)[0]


def test_edges_are_steps_to_the_neighbours_and_variance() -> None:
    grid, random = 3, np.random.default_rng(0)
    patches = random.integers(0, 256, (grid**2, 192), dtype=np.uint8)
    colour = patches.reshape(grid, grid, 64, 3).astype(float).mean(2) / 255
    found = edge_strength(torch.from_numpy(patches), grid)
    for place in range(grid**2):
        row, column = divmod(place, grid)
        beside = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
        steps = [
            float(np.mean((colour[row, column] - colour[r, c]) ** 2))
            for r, c in beside
            if 0 <= r < grid and 0 <= c < grid
        ]
        variance = float(pixel_variance(torch.from_numpy(patches[place])))
        assert float(found[place]) == pytest.approx(sum(steps) / len(steps) + variance, rel=1e-9)
    assert edge_strength(torch.full((1, 192), 9, dtype=torch.uint8), 1).tolist() == [0.0]


def test_what_is_no_patch_is_refused() -> None:
    with pytest.raises(ValueError, match="not uint8"):
        pixel_variance(torch.zeros(4, 192))
    with pytest.raises(ValueError, match="no square RGB patch"):
        pixel_variance(torch.zeros(4, 190, dtype=torch.uint8))
    with pytest.raises(ValueError, match="at least 2 x 2"):
        gradient_energy(torch.zeros(4, 3, dtype=torch.uint8))


def test_distance_from_the_centre() -> None:
    odd = centre_distance(3).reshape(3, 3)
    assert odd[1, 1] == 0
    assert odd[0, 1] == odd[1, 0] == 1
    assert odd[2, 2] == pytest.approx(2**0.5)
    assert len(set(centre_distance(2).tolist())) == 1


@pytest.mark.parametrize("grid", [1, 2, 4, 14, 16])
def test_even_order_names_every_position_once_from_the_middle(grid: int) -> None:
    order = even_order(grid)
    assert sorted(order.tolist()) == list(range(grid * grid))
    assert order[0] == grid // 2 * grid + grid // 2


@pytest.mark.parametrize("kept", [4, 10, 19, 49, 98])
def test_every_beginning_of_the_even_order_covers_the_grid(kept: int) -> None:
    grid = 14
    row, column = np.divmod(even_order(grid)[:kept], grid)
    # Equal shares of the area of a torus: a disc of that area must hold a kept position wherever it lies.
    step = np.abs(np.arange(grid)[:, None] - np.arange(grid)[None, :])
    step = np.minimum(step, grid - step)
    distance = np.hypot(step[:, None, row], step[None, :, column])
    apart = np.hypot(step[row[:, None], row], step[column[:, None], column]) + np.eye(kept) * 100
    cell = grid / kept**0.5
    assert distance.min(axis=2).max() <= 0.9 * cell
    assert apart.min() >= 0.65 * cell
    for half in (row < 7, column < 7):
        assert abs(2 * int(half.sum()) - kept) <= max(2, 0.1 * kept)


def test_even_order_of_the_smallest_grids_is_pinned() -> None:
    assert even_order(2).tolist() == [3, 0, 1, 2]
    assert even_order(4).tolist()[:4] == [10, 0, 2, 8]
