"""A row is its own evidence: its score follows from it and the teacher, its pixels from the image and its box."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from patchsieve.pipeline.images.decode import decode_image
from patchsieve.pipeline.images.views import ViewBox, apply_view, decode_view, encode_view
from patchsieve.pipeline.teacher.architecture import OutputSpace
from patchsieve.pipeline.teacher.checkpoint import read_teacher
from tests.helpers.photos import photo_samples, write_shard
from tests.helpers.score_runs import Row, Rows, rows_of, save_small_teacher, score_config, score_here
from tests.pipeline.scoring.reference import Reference

SIDE, PATCH, GRID = 48, 8, 6


class Photos(NamedTuple):
    """A shard of two photos, and teachers by the space they predict in."""

    shard: Path
    teachers: dict[OutputSpace, str]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Photos:
    folder = tmp_path_factory.mktemp("evidence")
    spaces: tuple[OutputSpace, ...] = ("pixels", "normalised")
    return Photos(
        write_shard(folder / "photos.tar", photo_samples(2, height=70, width=90)),
        {space: save_small_teacher(folder, output_space=space) for space in spaces},
    )


def scored(photos: Photos, out: Path, space: OutputSpace, **changes: Any) -> Rows:
    score_here(score_config([photos.shard], out, photos.teachers[space], **changes))
    return rows_of(out)


def view_of(row: Row) -> Tensor:
    """The view as far as the row holds it, uint8 `[3, 48, 48]`; 0 where it holds no pixels."""
    if "pixels" in row:
        return decode_view(row["pixels"])
    view = np.zeros((SIDE, SIDE, 3), np.uint8)
    stored = np.frombuffer(row["patches"], np.uint8).reshape(-1, PATCH, PATCH, 3)
    for place, patch in zip(row["visible"], stored, strict=True):
        top, left = place // GRID * PATCH, place % GRID * PATCH
        view[top : top + PATCH, left : left + PATCH] = patch
    return torch.from_numpy(view).permute(2, 0, 1)


def assert_scores_follow(rows: Rows, teacher: str, *, removal: str, metric: str) -> None:
    file = read_teacher(teacher)
    reference = Reference(
        file.state,
        patch_size=PATCH,
        heads=file.config.heads,
        decoder_heads=file.config.decoder_heads,
        output_space=file.config.output_space,
    )
    assert len(rows) == 4
    for row in rows.values():
        expected = reference.scores(view_of(row), row["visible"], removal=removal, metric=metric)
        assert len(set(expected)) == len(expected), "the teacher tells patches apart, or this shows nothing"
        # The change in ssim is a small difference from 1, of which fp32 keeps fewer digits.
        tolerance = 2e-5 if metric == "ssim" else 1e-5
        assert row["score"] == pytest.approx(expected, rel=tolerance, abs=0)


@pytest.mark.parametrize("metric", ["l1", "l2", "ssim", "psnr"])
@pytest.mark.parametrize("removal", ["decoder", "encoder"])
def test_scores_follow_from_the_stored_patches(
    photos: Photos, tmp_path: Path, removal: str, metric: str
) -> None:
    rows = scored(photos, tmp_path / "out", "pixels", removal=removal, metric=metric)
    assert_scores_follow(rows, photos.teachers["pixels"], removal=removal, metric=metric)


@pytest.mark.parametrize("metric", ["l1", "l2", "ssim", "psnr"])
def test_scores_follow_from_the_stored_view(photos: Photos, tmp_path: Path, metric: str) -> None:
    rows = scored(photos, tmp_path / "out", "normalised", metric=metric, store="view")
    assert_scores_follow(rows, photos.teachers["normalised"], removal="decoder", metric=metric)


@pytest.mark.parametrize("crop", ["random", "center"])
def test_views_are_replayed_from_the_image_and_the_box(photos: Photos, tmp_path: Path, crop: str) -> None:
    stores = ("patches", "view")
    patches, views = (
        scored(photos, tmp_path / store, "pixels", crop=crop, store=store, views="4") for store in stores
    )
    with tarfile.open(photos.shard) as archive:
        images = {
            member.name[: -len(".jpg")]: decode_image((archive.extractfile(member) or io.BytesIO()).read())
            for member in archive
            if member.name.endswith(".jpg")
        }
    assert len(patches) == 8
    assert crop == "center" or {row["hflip"] for row in patches.values()} == {True, False}
    for key, row in patches.items():
        image = images[row["sample_key"]]
        assert (row["image_height"], row["image_width"]) == tuple(image.shape[1:])
        corner, side = (row["crop_top"], row["crop_left"]), (row["crop_height"], row["crop_width"])
        view = apply_view(image, ViewBox(*corner, *side, hflip=row["hflip"]), SIDE)
        places = [(place // GRID * PATCH, place % GRID * PATCH) for place in row["visible"]]
        cut = [view[:, top : top + PATCH, left : left + PATCH] for top, left in places]
        assert b"".join(patch.permute(1, 2, 0).numpy().tobytes() for patch in cut) == row["patches"]
        # The same crop, mirrored or not, whatever the table stores of it.
        assert views[key]["pixels"] == encode_view(view)
        assert [views[key][name] for name in row if name not in ("score", "patches")] == [
            row[name] for name in row if name not in ("score", "patches")
        ]
