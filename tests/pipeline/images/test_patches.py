"""Patch grids and masks. The pinned masks are part of what a stored row means: they must never change."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from patchsieve.pipeline.images.masks import draw_visible
from patchsieve.pipeline.images.patches import (
    denormalise,
    hidden_positions,
    normalise,
    patchify,
    take_patches,
    unpatchify,
    visible_count,
)
from patchsieve.pipeline.row_config import Masks

Draw = tuple[str, int, Masks, bool]

PINNED: list[tuple[Draw, list[int]]] = [
    (
        ("a/cat", 0, "uniform", False),
        [0, 7, 23, 31, 42, 67, 69, 72, 74, 77, 81, 84, 95, 117, 119, 133, 150, 151, 176],
    ),
    (
        ("a/cat", 1, "uniform", False),
        [7, 24, 39, 42, 77, 92, 106, 109, 114, 118, 137, 144, 148, 162, 165, 166, 169, 179, 195],
    ),
    (
        ("a/cat", 0, "spread", False),
        [1, 4, 11, 22, 28, 44, 48, 54, 65, 73, 85, 104, 109, 126, 130, 162, 167, 170, 173],
    ),
    (
        ("a/cat", 0, "uniform", True),
        [31, 35, 36, 49, 54, 61, 64, 66, 72, 76, 94, 105, 112, 115, 120, 131, 177, 191, 194],
    ),
    (
        ("a/cat", 10, "uniform", True),
        [31, 34, 35, 36, 54, 64, 70, 72, 94, 97, 105, 112, 115, 120, 138, 159, 178, 191, 194],
    ),
    (
        ("a/cat", 11, "uniform", True),
        [0, 10, 40, 54, 55, 62, 64, 70, 86, 92, 107, 147, 151, 158, 177, 186, 187, 192, 195],
    ),
    (
        ("a/cat", 0, "spread", True),
        [0, 11, 19, 41, 50, 53, 57, 83, 86, 89, 106, 123, 140, 146, 164, 176, 184, 187, 193],
    ),
    (
        ("a/cat", 10, "spread", True),
        [0, 9, 31, 35, 47, 54, 64, 71, 76, 105, 113, 122, 125, 126, 130, 176, 180, 183, 186],
    ),
]


@pytest.mark.parametrize(("draw", "expected"), PINNED)
def test_masks_are_pinned(draw: Draw, expected: list[int]) -> None:
    key, view, masks, partition = draw
    visible = draw_visible(0, key, view, grid=14, count=19, masks=masks, partition=partition)
    assert visible.tolist() == expected


def test_visible_counts_of_the_usual_grids() -> None:
    assert [visible_count(positions, 0.9) for positions in (196, 256)] == [19, 25]
    assert visible_count(196, 0.75) == 49
    assert visible_count(4, 0.5) == 2


@pytest.mark.parametrize("masks", ["uniform", "spread"])
@pytest.mark.parametrize("partition", [False, True])
@pytest.mark.parametrize(("grid", "count"), [(2, 2), (3, 2), (7, 4), (14, 19), (14, 195), (16, 25), (4, 16)])
def test_masks_are_ascending_distinct_and_within_the_grid(
    masks: Masks, partition: bool, grid: int, count: int
) -> None:
    for view in range(4):
        visible = draw_visible(7, "key", view, grid=grid, count=count, masks=masks, partition=partition)
        assert visible.dtype == np.int16
        assert visible.shape == (count,)
        assert (np.diff(visible) > 0).all()
        assert visible[0] >= 0
        assert visible[-1] < grid * grid


@pytest.mark.parametrize("masks", ["uniform", "spread"])
@pytest.mark.parametrize(("grid", "count"), [(2, 2), (3, 2), (7, 4), (14, 19), (14, 98), (16, 25)])
def test_every_partition_covers_every_patch(masks: Masks, grid: int, count: int) -> None:
    groups = -(-grid * grid // count)
    draws = [
        draw_visible(3, "key", view, grid=grid, count=count, masks=masks, partition=True)
        for view in range(2 * groups)
    ]
    for partition in (draws[:groups], draws[groups:]):
        shown = np.bincount(np.concatenate(partition), minlength=grid * grid)
        assert shown.min() == 1
        assert shown.sum() == groups * count
        # Only the last group shows patches a second time.
        assert np.bincount(np.concatenate(partition[:-1]), minlength=grid * grid).max() == 1
    if grid > 2:
        assert not np.array_equal(draws[0], draws[groups])


def test_masks_depend_on_seed_key_and_view_only() -> None:
    def draw(seed: int, key: str, view: int) -> list[int]:
        visible = draw_visible(seed, key, view, grid=14, count=19, masks="uniform", partition=False)
        return list(visible)

    first = draw(0, "key", 0)
    others = [draw(1, "key", 0), draw(0, "kez", 0), draw(0, "key", 1)]
    assert first not in others
    assert draw(0, "key", 0) == first


def test_a_drawn_mask_may_be_changed_without_changing_later_ones() -> None:
    draws = [draw_visible(0, "key", 0, grid=4, count=4, masks="uniform", partition=True) for _ in range(2)]
    before = draws[1].copy()
    draws[0][:] = 0
    again = draw_visible(0, "key", 0, grid=4, count=4, masks="uniform", partition=True)
    assert np.array_equal(again, before)


@pytest.mark.parametrize("partition", [False, True])
def test_spread_masks_lie_farther_apart(partition: bool) -> None:
    def nearest(masks: Masks) -> float:
        distances = []
        for view in range(33):
            chosen = draw_visible(0, "key", view, grid=14, count=19, masks=masks, partition=partition)
            row, column = np.divmod(chosen.astype(np.int64), 14)
            apart = np.hypot(row[:, None] - row, column[:, None] - column) + 100 * np.eye(len(row))
            distances.append(apart.min(1).mean())
        return float(np.mean(distances))

    assert nearest("spread") > 1.2 * nearest("uniform")


def test_uniform_masks_show_all_patches_alike() -> None:
    shown = np.zeros(49)
    for view in range(2000):
        shown[draw_visible(0, "key", view, grid=7, count=7, masks="uniform", partition=False)] += 1
    # 2000 draws of 1 in 7: 286 expected, deviation 15.6.
    assert abs(shown - 2000 / 7).max() < 5 * 15.6


def test_patches_are_row_major_with_channels_last() -> None:
    image = torch.arange(2 * 3 * 6 * 6).reshape(2, 3, 6, 6)
    patches = patchify(image, 2)
    assert patches.shape == (2, 9, 12)
    expected = [
        image[1, channel, 2 + row, 4 + column] for row in (0, 1) for column in (0, 1) for channel in range(3)
    ]
    assert patches[1, 1 * 3 + 2].tolist() == [int(value) for value in expected]
    assert torch.equal(unpatchify(patches, 2), image)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be cut"):
        patchify(torch.zeros(1, 3, 6, 8), 2)
    with pytest.raises(ValueError, match="no square image"):
        unpatchify(torch.zeros(1, 8, 12), 2)
    with pytest.raises(ValueError, match="visible patches"):
        draw_visible(0, "key", 0, grid=2, count=5, masks="uniform", partition=False)


def test_normalised_pixels_have_the_imagenet_statistics_taken_out() -> None:
    pixels = torch.tensor([[[0, 128, 255, 255, 0, 1]]], dtype=torch.uint8)
    expected = [
        (value / 255 - mean) / deviation
        for value, mean, deviation in zip(
            pixels.flatten().tolist(), [0.485, 0.456, 0.406] * 2, [0.229, 0.224, 0.225] * 2, strict=True
        )
    ]
    values = normalise(pixels)
    assert values.dtype == torch.float32
    assert values.flatten().tolist() == pytest.approx(expected, rel=1e-6)
    assert torch.allclose(denormalise(values), pixels / 255, atol=1e-6)


def test_hidden_positions_are_the_others_in_order() -> None:
    visible = torch.tensor([[0, 3], [5, 1]], dtype=torch.int16)
    assert hidden_positions(visible, 6).tolist() == [[1, 2, 4, 5], [0, 2, 3, 4]]
    with pytest.raises(ValueError, match="numbered"):
        hidden_positions(torch.tensor([[0, 6]]), 6)
    with pytest.raises(ValueError, match="twice"):
        hidden_positions(torch.tensor([[2, 2]]), 6)


def test_taken_patches_follow_their_positions() -> None:
    patches = torch.arange(2 * 4 * 3).reshape(2, 4, 3)
    taken = take_patches(patches, torch.tensor([[3, 0], [1, 1]]))
    assert taken.tolist() == [
        [patches[0, 3].tolist(), patches[0, 0].tolist()],
        [patches[1, 1].tolist()] * 2,
    ]
