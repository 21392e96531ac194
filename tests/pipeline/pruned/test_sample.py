"""Pruned samples: pixels back in their places, coordinates back in the original, blocks cut finer, rows and back."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.images.views import ViewBox, apply_view
from patchsieve.pipeline.pruned.codec import enlarged
from patchsieve.pipeline.pruned.sample import PrunedSample, gather_patches
from tests.helpers.photos import photo_pixels


def sample(*positions: int, grid: int = 4, block: int = 16, **changes: Any) -> PrunedSample:
    size = grid * block
    pixels = torch.from_numpy(photo_pixels(5, size, size)).permute(2, 0, 1)
    at = torch.tensor(positions)
    return PrunedSample(
        shard="a.tar",
        key="one",
        patches=gather_patches(pixels, at, block),
        positions=at,
        grid=grid,
        block=block,
        original_size=(300, 400),
        crop=(20, 70, 128, 256),
        fields={"cls": b"7"},
        **changes,
    )


def by_hand(kept: PrunedSample, patch_size: int) -> list[tuple[int, torch.Tensor]]:
    """(position, pixels `[p, p, 3]`) of every patch, cut from the whole image one at a time."""
    image, inside = kept.to_image(), torch.zeros(kept.grid**2, dtype=torch.bool)
    inside[kept.positions] = True
    grid = kept.size // patch_size
    found = []
    for position in range(grid**2):
        y, x = (at * patch_size for at in divmod(position, grid))
        if inside[y // kept.block * kept.grid + x // kept.block]:
            found.append((position, image[:, y : y + patch_size, x : x + patch_size].permute(1, 2, 0)))
    return found


def test_kept_patches_stand_where_they_stood() -> None:
    kept = sample(0, 3, 6, 15)
    whole = torch.from_numpy(photo_pixels(5, 64, 64)).permute(2, 0, 1)
    image = kept.to_image(fill=(1, 2, 3))
    for position in range(16):
        rows, columns = (slice(16 * at, 16 * at + 16) for at in divmod(position, 4))
        filled = torch.tensor([1, 2, 3], dtype=torch.uint8)[:, None, None].expand(3, 16, 16)
        expected = whole[:, rows, columns] if position in (0, 3, 6, 15) else filled
        assert torch.equal(image[:, rows, columns], expected)
    assert image.shape == (3, kept.size, kept.size)


def test_all_patches_make_the_image() -> None:
    whole = torch.from_numpy(photo_pixels(5, 64, 64)).permute(2, 0, 1)
    assert torch.equal(sample(*range(16)).to_image(), whole)


@pytest.mark.parametrize("patch_size", [32, 16, 8, 4])
def test_blocks_are_cut_into_finer_patches(patch_size: int) -> None:
    kept = sample(1, 2, 7, grid=3, block=32)
    patches, positions, grid = kept.split(patch_size)
    expected = by_hand(kept, patch_size)
    assert (grid, positions.tolist()) == (96 // patch_size, [position for position, _ in expected])
    for patch, (_, pixels) in zip(patches, expected, strict=True):
        assert torch.equal(patch, pixels.flatten())


@pytest.mark.parametrize("patch_size", [0, 12, 64])
def test_patches_must_fill_blocks(patch_size: int) -> None:
    with pytest.raises(UserError, match=f"patches of {patch_size} px do not fill the blocks of 32 px"):
        sample(1, grid=3, block=32).split(patch_size)


@pytest.mark.parametrize("fill", [-1, 256, (1, 2), (0, 0, 999)])
def test_colours_that_are_none(fill: Any) -> None:
    with pytest.raises(UserError, match="fill is"):
        sample(1).to_image(fill)


def test_corners_of_the_crop_are_its_box() -> None:
    kept = sample(0)
    assert kept.to_original([[0, 0], [64, 64], [32, 16]]).tolist() == [[70, 20], [326, 148], [198, 52]]
    assert kept.from_original([[70, 20], [326, 148]]).tolist() == [[0, 0], [64, 64]]
    points = np.random.default_rng(0).uniform(0, 64, size=(3, 5, 2))
    np.testing.assert_allclose(kept.from_original(kept.to_original(points)), points, atol=1e-9)


def test_coordinates_follow_the_pixels() -> None:
    """A bright spot of the original is found in the crop where `from_original` says."""
    original = torch.zeros(3, 300, 400, dtype=torch.uint8)
    original[:, 100:104, 200:208] = 255
    kept = sample(*range(16))
    crop = apply_view(original, ViewBox(20, 70, 128, 256, hflip=False), kept.size)[0].double()
    rows, columns = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    centre = [float((at * crop).sum() / crop.sum()) for at in (columns, rows)]
    np.testing.assert_allclose(kept.from_original([204, 102]), centre, atol=0.05)
    np.testing.assert_allclose(kept.to_original(centre), [204, 102], atol=0.2)


def test_images_of_unknown_place_have_no_coordinates() -> None:
    with pytest.raises(UserError, match="one: a transform of your own"):
        dataclasses.replace(sample(0), crop=None).to_original([0, 0])


def with_background(kept: PrunedSample, side: int) -> PrunedSample:
    pixels = torch.from_numpy(photo_pixels(5, kept.size, kept.size)).permute(2, 0, 1)
    small = apply_view(pixels, ViewBox(0, 0, kept.size, kept.size, hflip=False), side)
    return dataclasses.replace(kept, background=small)


def test_kept_patches_lie_over_the_thumbnail() -> None:
    kept = with_background(sample(0, 3, 6, 15), 32)
    assert kept.background is not None
    image, under = kept.to_image(), enlarged(kept.background, 64)
    for position in range(16):
        rows, columns = (slice(16 * at, 16 * at + 16) for at in divmod(position, 4))
        expected = sample(*range(16)).to_image() if position in (0, 3, 6, 15) else under
        assert torch.equal(image[:, rows, columns], expected[:, rows, columns])
    assert torch.equal(kept.to_image(7), sample(0, 3, 6, 15).to_image(7)), "a colour that is asked for"


def test_patches_of_the_thumbnail() -> None:
    kept = with_background(sample(0), 32)
    assert kept.background is not None
    patches, side = kept.split_background(16)
    assert (patches.shape, side) == ((4, 768), 2)
    assert torch.equal(patches[1], kept.background[:, :16, 16:].permute(1, 2, 0).flatten())
    assert [tuple(found.shape) for found in sample(0).split_background(16)[:1]] == [(0, 768)]
    with pytest.raises(UserError, match="patches of 14 px do not fill the thumbnails of 32 px"):
        kept.split_background(14)


@pytest.mark.parametrize("known", [True, False])
def test_rows_and_back(known: bool) -> None:
    kept = sample(2, 9)
    unknown = dataclasses.replace(kept, crop=None, original_size=None)
    kept = with_background(kept, 32) if known else unknown
    row = kept.to_row()
    assert all(value is not None and not isinstance(value, torch.Tensor) for value in row.values())
    back = PrunedSample.from_row(row)
    for name in ("shard", "key", "grid", "block", "original_size", "crop", "fields"):
        assert getattr(back, name) == getattr(kept, name)
    assert torch.equal(back.patches, kept.patches)
    assert torch.equal(back.positions, kept.positions)
    if known:
        assert torch.equal(back.background, kept.background)
    else:
        assert back.background is None


def test_fields_with_the_name_of_a_column() -> None:
    with pytest.raises(UserError, match="field 'grid' of one"):
        dataclasses.replace(sample(0), fields={"grid": b""}).to_row()
