"""Patches of several sizes: they tile the grid, are as many as asked for, and large where an image is flat."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from patchsieve.ranker.prove.quadtree import Block, quadtree


def covered(blocks: list[Block], grid: int) -> list[list[int]]:
    """How many blocks lie on each patch."""
    found = [[0] * grid for _ in range(grid)]
    for side, row, column in blocks:
        for down in range(side):
            for right in range(side):
                found[row + down][column + right] += 1
    return found


def noise(grid: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (grid * grid, 8 * 8 * 3), dtype=np.uint8)


@pytest.mark.parametrize(("grid", "count"), [(14, 49), (14, 98), (14, 22), (6, 9), (7, 30), (1, 1), (5, 25)])
def test_blocks_tile_the_grid_and_are_as_many_as_asked_for(grid: int, count: int) -> None:
    blocks = quadtree(noise(grid), grid, count)
    assert covered(blocks, grid) == [[1] * grid for _ in range(grid)]
    assert count - 3 < len(blocks) <= count


def test_no_fewer_than_the_largest_blocks() -> None:
    assert len(quadtree(noise(14), 14, 10)) == 22


def entropy_of_loops(patches: np.ndarray, grid: int, block: Block) -> float:
    """Bits of a block's luminance in 32 steps, pixel by pixel."""
    side, row, column = block
    steps: Counter[int] = Counter()
    for down in range(side):
        for right in range(side):
            for red, green, blue in patches[(row + down) * grid + column + right].reshape(-1, 3).tolist():
                steps[(299 * red + 587 * green + 114 * blue) // 1000 * 32 // 256] += 1
    total = sum(steps.values())
    return -sum(count / total * math.log2(count / total) for count in steps.values())


def test_the_block_of_the_highest_entropy_is_split_first() -> None:
    grid, random = 8, np.random.default_rng(3)
    patches = np.full((grid**2, 192), 90, np.uint8)
    for place in range(grid**2):
        patches[place] += random.integers(0, 1 + 2 * place, 192, dtype=np.uint8)
    whole = quadtree(patches, grid, 4)
    assert [block[0] for block in whole] == [4] * 4
    fullest = max(whole, key=lambda block: entropy_of_loops(patches, grid, block))
    after = quadtree(patches, grid, 7)
    assert set(whole) - set(after) == {fullest}
    again = quadtree(patches, grid, 10)
    fullest = max(after, key=lambda block: entropy_of_loops(patches, grid, block))
    assert set(after) - set(again) == {fullest}


def test_flat_parts_stay_large() -> None:
    grid = 8
    patches = np.full((grid**2, 192), 50, np.uint8)
    patches[0] = noise(1)
    blocks = quadtree(patches, grid, 10)
    assert {block for block in blocks if block[0] == 1} == {(1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1)}
