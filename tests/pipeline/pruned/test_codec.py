"""Mosaics and their files: exact where they say so, near where they are not, refused where they do not fit."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from patchsieve.pipeline.errors import ContentError, UserError
from patchsieve.pipeline.images.views import ViewBox, apply_view
from patchsieve.pipeline.pruned.codec import (
    ImageCodec,
    decode_background,
    decode_mosaic,
    enlarged,
    flatten_dropped,
    pack_mosaic,
    unpack_mosaic,
)
from patchsieve.pipeline.pruned.format import PackedRecord
from tests.helpers.photos import photo_pixels


def crop(size: int = 64, seed: int = 1) -> torch.Tensor:
    return torch.from_numpy(photo_pixels(seed, size, size)).permute(2, 0, 1)


def record(
    *positions: int, grid: int = 4, block: int = 16, columns: int = 1, codec: str = "png"
) -> PackedRecord:
    return PackedRecord(
        grid=grid,
        block=block,
        positions=positions,
        columns=columns,
        original_size=(200, 100),
        crop=(50, 0, 100, 100),
        codec=codec,
    )


def psnr(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(10 * torch.log10(255**2 / (one.double() - other.double()).square().mean()))


@pytest.mark.parametrize(("block", "columns"), [(16, 5), (16, 2), (8, 3), (32, 1)])
def test_mosaics_hold_the_blocks_in_order(block: int, columns: int) -> None:
    pixels = crop(4 * block)
    kept = record(0, 3, 6, 9, 15, block=block, columns=columns)
    mosaic = pack_mosaic(pixels, kept)
    assert mosaic.shape == (3, *kept.mosaic_size)
    for number, position in enumerate(kept.positions):
        row, column = divmod(position, 4)
        expected = pixels[:, row * block : (row + 1) * block, column * block : (column + 1) * block]
        y, x = number // columns * block, number % columns * block
        assert torch.equal(mosaic[:, y : y + block, x : x + block], expected)
        assert torch.equal(unpack_mosaic(mosaic, kept)[number], expected)


def test_spare_places_have_one_colour() -> None:
    kept = record(0, 3, 6, columns=2)
    spare = pack_mosaic(crop(), kept)[:, 16:, 16:]
    mean = unpack_mosaic(pack_mosaic(crop(), kept), kept)[2].double().mean(dim=(1, 2))
    assert torch.equal(spare, mean.round().byte()[:, None, None].expand(3, 16, 16))


@pytest.mark.parametrize(
    ("codec", "least"),
    [
        (ImageCodec("jpeg"), 25),
        (ImageCodec("webp"), 25),
        (ImageCodec("webp", 100), None),
        (ImageCodec("png"), None),
    ],
)
def test_files_come_back(codec: ImageCodec, least: float | None) -> None:
    kept = record(1, 2, 7, 8, 12, columns=5, codec=codec.name)
    mosaic = pack_mosaic(crop(), kept)
    data = codec.encode(mosaic)
    decoded = decode_mosaic(data, kept)
    assert codec.lossless == (least is None)
    assert torch.equal(decoded, mosaic) if least is None else psnr(decoded, mosaic) > least
    assert codec.encode(mosaic) == data
    assert Image.open(io.BytesIO(data)).size == (80, 16)


def test_lower_quality_is_smaller() -> None:
    for name in ("jpeg", "webp"):
        sizes = [len(ImageCodec(name, quality).encode(crop(224))) for quality in (30, 60, 90)]
        assert sizes == sorted(sizes)
        assert sizes[0] < sizes[2] / 2


def test_jpegs_are_4_2_0_with_their_own_tables() -> None:
    ours = ImageCodec("jpeg").encode(crop(224))
    picture = Image.fromarray(photo_pixels(1, 224, 224))
    plain = io.BytesIO()
    picture.save(plain, "JPEG", quality=90, subsampling=2)
    assert len(ours) < len(plain.getvalue())
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(ours))), np.asarray(Image.open(plain)))


def test_dropped_blocks_become_their_mean() -> None:
    pixels = crop()
    keep = np.zeros(16, np.bool_)
    keep[[0, 5, 15]] = True
    flat = flatten_dropped(pixels, keep, 4)
    for position in range(16):
        rows, columns = (slice(16 * at, 16 * at + 16) for at in divmod(position, 4))
        block = pixels[:, rows, columns]
        expected = block if keep[position] else block.double().mean(dim=(1, 2)).round().byte()[:, None, None]
        assert torch.equal(flat[:, rows, columns], expected.expand(3, 16, 16))


def test_dropped_patches_show_the_thumbnail() -> None:
    pixels, keep = crop(), np.zeros(16, np.bool_)
    keep[[0, 5, 15]] = True
    small = apply_view(pixels, ViewBox(0, 0, 64, 64, hflip=False), 32)
    under = interpolate(small[None], (64, 64), mode="bicubic", antialias=True)[0]
    assert torch.equal(enlarged(small, 64), under)
    pasted = flatten_dropped(pixels, keep, 4, small)
    for position in range(16):
        rows, columns = (slice(16 * at, 16 * at + 16) for at in divmod(position, 4))
        assert torch.equal(pasted[:, rows, columns], (pixels if keep[position] else under)[:, rows, columns])
    assert psnr(pasted, pixels) > psnr(flatten_dropped(pixels, keep, 4), pixels)


def test_thumbnails_that_do_not_fit_their_record() -> None:
    kept = dataclasses.replace(record(1, 2), background=32)
    good = ImageCodec("jpeg").encode(crop(32))
    assert psnr(decode_background(good, kept), crop(32)) > 20
    for data, reason in [
        (ImageCodec("png").encode(crop(32)), "background.jpg is png, not jpeg"),
        (ImageCodec("jpeg").encode(crop(48)), "48 x 48 pixels where its record says 32 x 32"),
        (b"", "another kind of file"),
    ]:
        with pytest.raises(ContentError, match=reason):
            decode_background(data, kept)


def test_masked_images_cost_less() -> None:
    keep = np.arange(196) % 2 == 0
    codec = ImageCodec("jpeg")
    masked = len(codec.encode(flatten_dropped(crop(224), keep, 14)))
    assert masked < 0.8 * len(codec.encode(crop(224)))


@pytest.mark.parametrize(("name", "quality"), [("gif", 90), ("jpeg", 0), ("jpeg", 101), ("webp", True)])
def test_codecs_that_are_none(name: str, quality: int) -> None:
    with pytest.raises(UserError, match=r"codec is 'gif'|quality is"):
        ImageCodec(name, quality)


def test_files_that_do_not_fit_their_record() -> None:
    kept = record(1, 2, 7, columns=3, codec="jpeg")
    good = ImageCodec("jpeg").encode(pack_mosaic(crop(), kept))
    for data, reason in [
        (ImageCodec("png").encode(pack_mosaic(crop(), kept)), "is png, not jpeg"),
        (ImageCodec("jpeg").encode(crop()), "64 x 64 pixels where its record says 16 x 48"),
        (b"GIF89a", "another kind of file"),
        (b"", "another kind of file"),
        (good[:100] + b"\xff\xd9", r"JPEG|jpeg"),
    ]:
        with pytest.raises(ContentError, match=reason):
            decode_mosaic(data, kept)


def test_sizes_that_do_not_fit_are_told() -> None:
    with pytest.raises(ValueError, match="a crop of 64 px"):
        pack_mosaic(crop(80), record(0))
    with pytest.raises(ValueError, match="a mosaic of"):
        unpack_mosaic(crop(16), record(0, 1))
    with pytest.raises(ValueError, match="a mask of"):
        flatten_dropped(crop(), np.ones(15, np.bool_), 4)
