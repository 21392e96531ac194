"""What each arm leaves of an image: pixels, places, and bytes as a tar counts them."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
import torch

from patchsieve.pipeline.images.decode import decode_image
from patchsieve.pipeline.images.patches import patchify
from patchsieve.pipeline.pruned.codec import ImageCodec, pack_mosaic
from patchsieve.pipeline.pruned.format import PackedRecord, mosaic_columns
from patchsieve.ranker.prove.quadtree import quadtree
from patchsieve.ranker.prove.tokens import positions_at
from patchsieve.ranker.prove.views import (
    Canvas,
    grid_places,
    jpeg_view,
    kept_view,
    quadtree_view,
    resized_view,
    tar_bytes,
    whole_view,
)
from tests.helpers.photos import photo_pixels

CANVAS = Canvas(8, 8, ImageCodec("jpeg", 90))


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.from_numpy(photo_pixels(3, 64, 64)).permute(2, 0, 1).contiguous()


@pytest.fixture(scope="module")
def patches(pixels: torch.Tensor) -> torch.Tensor:
    return patchify(pixels[None], 8)[0]


@pytest.mark.parametrize("sizes", [(1,), (512, 513), (0, 5000, 77)])
def test_bytes_are_those_that_a_tar_grows_by(sizes: tuple[int, ...]) -> None:
    scratch = io.BytesIO()
    with tarfile.open(fileobj=scratch, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for number, size in enumerate(sizes):
            member = tarfile.TarInfo(f"a.{number}")
            member.size = size
            archive.addfile(member, io.BytesIO(bytes(size)))
        grown = archive.offset
    assert tar_bytes([bytes(size) for size in sizes]) == grown


def test_whole_images(pixels: torch.Tensor, patches: torch.Tensor) -> None:
    view = whole_view(patches, CANVAS)
    assert torch.equal(view.image(), pixels)
    assert torch.equal(view.patches, patches)
    assert view.places.tolist() == [[row, column] for row in range(8) for column in range(8)]
    assert view.nbytes == tar_bytes([CANVAS.codec.encode(pixels)])


def test_kept_patches(pixels: torch.Tensor, patches: torch.Tensor) -> None:
    keep = np.zeros(64, np.bool_)
    keep[[3, 17, 60]] = True
    view = kept_view(patches, keep, CANVAS)
    assert torch.equal(view.patches, patches[[3, 17, 60]])
    assert view.places.tolist() == [[0, 3], [2, 1], [7, 4]]
    image = patchify(view.image()[None], 8)[0]
    assert torch.equal(image[[3, 17, 60]], patches[[3, 17, 60]])
    dropped = image[5].reshape(-1, 3)
    assert (dropped == patches[5].reshape(-1, 3).double().mean(0).round().byte()).all()
    record = PackedRecord(
        grid=8,
        block=8,
        positions=(3, 17, 60),
        columns=mosaic_columns(3, 8),
        original_size=(64, 64),
        crop=(0, 0, 64, 64),
        codec="jpeg",
    )
    assert view.nbytes == tar_bytes([CANVAS.codec.encode(pack_mosaic(pixels, record)), record.to_json()])


def test_kept_patches_over_a_thumbnail(pixels: torch.Tensor, patches: torch.Tensor) -> None:
    keep = np.zeros(64, np.bool_)
    keep[[3, 17]] = True
    view, alone = kept_view(patches, keep, CANVAS, background=16), resized_view(patches, 2, CANVAS)
    assert torch.equal(view.patches, torch.cat([alone.patches, patches[[3, 17]]]))
    assert torch.equal(view.places, torch.cat([alone.places, torch.tensor([[0.0, 3.0], [2.0, 1.0]])]))
    image, under = patchify(view.image()[None], 8)[0], patchify(alone.image()[None], 8)[0]
    assert torch.equal(image[[3, 17]], patches[[3, 17]])
    assert torch.equal(image[~torch.from_numpy(keep)], under[~torch.from_numpy(keep)])
    # The record grows by what tells of the thumbnail, within the padding of its member.
    assert view.nbytes == kept_view(patches, keep, CANVAS).nbytes + alone.nbytes


def test_smaller_images_lie_where_they_came_from(pixels: torch.Tensor, patches: torch.Tensor) -> None:
    view = resized_view(patches, 4, CANVAS)
    assert view.patches.shape == (16, 192)
    assert view.places[:2].tolist() == [[0.5, 0.5], [0.5, 2.5]]
    mean = pixels.float().mean((1, 2))
    assert view.image().shape == (3, 64, 64)
    assert (view.image().float().mean((1, 2)) - mean).abs().max() < 2
    assert view.nbytes < whole_view(patches, CANVAS).nbytes


def test_places_of_parts_are_their_middles() -> None:
    assert torch.equal(grid_places(14, 14), torch.cartesian_prod(*[torch.arange(14.0)] * 2))
    assert grid_places(1, 14).tolist() == [[6.5, 6.5]]
    assert grid_places(10, 14)[:, 0].mean().item() == pytest.approx(6.5)


def test_worse_jpegs(pixels: torch.Tensor, patches: torch.Tensor) -> None:
    view = jpeg_view(patches, 20, CANVAS)
    data = ImageCodec("jpeg", 20).encode(pixels)
    assert torch.equal(view.image(), decode_image(data))
    assert torch.equal(view.patches, patchify(decode_image(data)[None], 8)[0])
    assert view.nbytes == tar_bytes([data])


def test_a_quadtree_of_single_patches_is_the_image(pixels: torch.Tensor, patches: torch.Tensor) -> None:
    view = quadtree_view(patches, quadtree(patches.numpy(), 8, 64), CANVAS)
    assert torch.equal(view.image(), pixels)
    assert torch.equal(view.patches, patches)
    assert torch.equal(view.places, CANVAS.places)


def test_large_blocks_are_means_of_their_pixels(pixels: torch.Tensor, patches: torch.Tensor) -> None:
    blocks = [(4, 0, 0), (4, 0, 4), (2, 4, 0), (2, 4, 2), (4, 4, 4), (2, 6, 0), (2, 6, 2)]
    view = quadtree_view(patches, blocks, CANVAS)
    assert view.places.tolist() == [[r + (s - 1) / 2, c + (s - 1) / 2] for s, r, c in blocks]
    for token, (side, row, column) in zip(view.patches, blocks, strict=True):
        block = pixels[:, row * 8 : (row + side) * 8, column * 8 : (column + side) * 8].double()
        expected = [
            [
                block[:, i * side : (i + 1) * side, j * side : (j + 1) * side].mean((1, 2)).tolist()
                for j in range(8)
            ]
            for i in range(8)
        ]
        assert (token.reshape(8, 8, 3).double() - torch.tensor(expected)).abs().max() <= 0.5 + 1e-4
    assert view.image().shape == pixels.shape
    assert (view.image().float() - pixels.float()).abs().mean() < 20


def test_positions_between_those_of_the_grid() -> None:
    table = torch.arange(9.0)[:, None] * torch.tensor([[1.0, 10.0]])
    places = torch.tensor([[0.0, 0.0], [2.0, 2.0], [0.5, 1.0], [1.0, 0.25], [-0.4, 2.4]])
    found = positions_at(table, 3, places)
    assert found[:, 0].tolist() == pytest.approx([0, 8, 2.5, 3.25, 2])
    assert torch.equal(found[:, 1], 10 * found[:, 0])
    whole = torch.cartesian_prod(*[torch.arange(3.0)] * 2)
    assert torch.equal(positions_at(table, 3, whole), table)
    assert torch.equal(positions_at(table[:1], 1, torch.zeros(2, 2)), table[:1].expand(2, -1))
