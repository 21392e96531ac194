"""The sheet of reconstructions that benchmarks draw: errors of hidden patches, and what a reconstruction explains."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from benchmarks._reconstructions import (
    ReconstructedPhoto,
    explained_share,
    patch_errors,
    reconstructed_photos,
    reconstruction_sheet,
)
from patchsieve.pipeline.pictures.sheet import HIDDEN_GRAY, colours, draw_sheet
from tests.helpers import sheets
from tests.helpers.photos import photo_pixels
from tests.helpers.sheets import tile
from tests.helpers.teachers import SMALL, random_teacher

SIDE, GRID = 48, 6
VIEW = photo_pixels(1, SIDE, SIDE)
VISIBLE = np.array([0, 7, 20, 35], dtype=np.int16)


def patch(picture: np.ndarray, position: int) -> np.ndarray:
    return sheets.patch(picture, position, grid=GRID)


def test_reconstruction_sheet_shows_errors_of_hidden_patches_only() -> None:
    reconstruction = VIEW.copy()
    patch(reconstruction, 3)[:] = np.where(patch(VIEW, 3) > 128, patch(VIEW, 3) - 40, patch(VIEW, 3) + 40)
    photo = ReconstructedPhoto(caption="a", view=VIEW, visible=VISIBLE, reconstruction=reconstruction)
    errors = patch_errors(VIEW, reconstruction, GRID**2)
    assert errors.tolist() == [40.0 if position == 3 else 0.0 for position in range(36)]
    sheet = reconstruction_sheet([photo], positions=GRID**2, title="t", subtitle="s")
    picture = draw_sheet(sheet)
    assert np.array_equal(tile(picture, sheet, 0, 0), VIEW)
    assert np.array_equal(patch(tile(picture, sheet, 0, 1), 7), patch(VIEW, 7))
    assert (patch(tile(picture, sheet, 0, 1), 8) == HIDDEN_GRAY).all()
    assert np.array_equal(tile(picture, sheet, 0, 2), reconstruction)
    drawn = tile(picture, sheet, 0, 3)
    for position, expected in ((3, colours(np.array(0.5))), (4, colours(np.array(0.0))), (7, HIDDEN_GRAY)):
        assert (patch(drawn, position) == expected).all()


def test_reconstructions_of_photos_come_with_what_they_explain() -> None:
    model = random_teacher(SMALL)
    photos = [torch.from_numpy(photo_pixels(seed, 90, 70 + seed)).permute(2, 0, 1) for seed in range(3)]
    rows = reconstructed_photos(model, photos, ["a", "b", "c"])
    assert [row.caption.split()[0] for row in rows] == ["a", "b", "c"]
    for row in rows:
        assert len(row.visible) == 9
        hidden = [p for p in range(36) if p not in row.visible]
        truth = np.concatenate([patch(row.view, p).reshape(-1, 3) for p in hidden]).astype(float)
        drawn = np.concatenate([patch(row.reconstruction, p).reshape(-1, 3) for p in hidden])
        share = 1 - ((drawn - truth) ** 2).mean() / ((truth - truth.mean(0)) ** 2).mean()
        assert explained_share(row, 36) == pytest.approx(share)
        assert f"({share:.0%} of" in row.caption
    perfect = dataclasses.replace(rows[0], reconstruction=rows[0].view)
    assert explained_share(perfect, 36) == 1
