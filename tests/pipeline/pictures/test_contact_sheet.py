"""The sheets: every pixel in its place, scores pooled and coloured as a slow reading of the rules has it."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image

from patchsieve.pipeline.images.patches import patchify, take_patches
from patchsieve.pipeline.pictures.contact_sheet import (
    ScoredPhoto,
    best_half,
    contact_sheet,
    only_patches,
    pool_scores,
)
from patchsieve.pipeline.pictures.rows import as_picture, painted
from patchsieve.pipeline.pictures.sheet import (
    HIDDEN_GRAY,
    Sheet,
    SheetColumn,
    SheetRow,
    colours,
    draw_sheet,
    enlarge,
    picture_file,
    plain,
    stretch,
)
from patchsieve.pipeline.scoring.changes import hidden_patches_pixels
from patchsieve.pipeline.scoring.scorer import reconstruct
from tests.helpers import sheets
from tests.helpers.photos import photo_pixels
from tests.helpers.sheets import tile
from tests.helpers.teachers import SMALL, random_teacher

SIDE, GRID = 48, 6
VIEW = photo_pixels(1, SIDE, SIDE)
VISIBLE = np.array([0, 7, 20, 35], dtype=np.int16)


def scored_photo(seed: int = 0, **changes: object) -> ScoredPhoto:
    random = np.random.default_rng(seed)
    photo = ScoredPhoto(
        caption=f"photo {seed}",
        view=photo_pixels(seed, SIDE, SIDE),
        known=np.ones(GRID**2, dtype=bool),
        scores=random.normal(size=(SIDE, SIDE)).astype(np.float32),
        visible=VISIBLE,
        reconstruction=photo_pixels(seed + 100, SIDE, SIDE),
    )
    return dataclasses.replace(photo, **changes)


def patch(picture: np.ndarray, position: int) -> np.ndarray:
    return sheets.patch(picture, position, grid=GRID)


def test_the_sheet_holds_every_pixel_of_its_pictures() -> None:
    photos = [scored_photo(seed) for seed in range(3)]
    sheet = contact_sheet(photos, title="title", subtitle="subtitle")
    picture = draw_sheet(sheet)
    for row, photo in enumerate(photos):
        assert np.array_equal(tile(picture, sheet, row, 0), photo.view)
        assert np.array_equal(tile(picture, sheet, row, 1), colours(stretch(photo.scores)))
        assert np.array_equal(tile(picture, sheet, row, 4), photo.reconstruction)
        shown = tile(picture, sheet, row, 3)
        for position in range(GRID**2):
            expected = patch(photo.view, position) if position in VISIBLE else np.full((8, 8, 3), HIDDEN_GRAY)
            assert np.array_equal(patch(shown, position), expected)


def test_texts_stay_off_the_pictures_and_on_the_sheet() -> None:
    bare = contact_sheet([scored_photo()], title="", subtitle="")
    caption = "ein sehr langer Name: Ängström/狗/\n" * 30
    told = contact_sheet([scored_photo(caption=caption)], title=caption, subtitle=caption)
    one, other = draw_sheet(bare), draw_sheet(told)
    assert one.shape == other.shape
    assert not np.array_equal(one, other)
    assert (other[:, -24:] == 255).all()
    for column in range(5):
        assert np.array_equal(tile(one, bare, 0, column), tile(other, told, 0, column))


@pytest.mark.parametrize(("pixels", "drawn"), [(32, 160), (48, 192), (150, 150), (224, 224)])
def test_pictures_are_as_wide_as_their_titles_need(pixels: int, drawn: int) -> None:
    view = photo_pixels(0, pixels, pixels)
    photo = scored_photo(
        view=view,
        known=np.ones(4, dtype=bool),
        scores=np.zeros((pixels, pixels), dtype=np.float32),
        visible=np.array([0], dtype=np.int16),
        reconstruction=view,
    )
    sheet = contact_sheet([photo], title="", subtitle="")
    assert sheet.side == drawn
    picture = draw_sheet(sheet)
    assert np.array_equal(tile(picture, sheet, 0, 0), view)
    assert np.array_equal(tile(picture, sheet, 0, 4), view)


def test_what_no_view_showed_stays_gray() -> None:
    known = np.ones(GRID**2, dtype=bool)
    known[[3, 4]] = False
    scores = enlarge(np.where(known, np.arange(36.0), np.nan).reshape(GRID, GRID), SIDE).astype(np.float32)
    sheet = contact_sheet([scored_photo(known=known, scores=scores)], title="", subtitle="")
    picture = draw_sheet(sheet)
    for column in range(3):
        assert (patch(tile(picture, sheet, 0, column), 3) == HIDDEN_GRAY).all()
    assert np.array_equal(patch(tile(picture, sheet, 0, 0), 5), patch(photo_pixels(0, SIDE, SIDE), 5))


def test_best_half_takes_the_patches_with_the_highest_means() -> None:
    random = np.random.default_rng(4)
    scores = random.normal(size=(SIDE, SIDE)).astype(np.float32)
    known = np.ones(GRID**2, dtype=bool)
    known[10:14] = False
    means = {p: float(patch(scores, p).astype(np.float64).mean()) for p in range(GRID**2) if known[p]}
    expected = sorted(sorted(means, key=lambda position: -means[position])[:18])
    assert np.flatnonzero(best_half(scores, known)).tolist() == expected
    assert best_half(np.zeros_like(scores), np.ones(36, dtype=bool)).sum() == 18
    assert best_half(np.full_like(scores, np.nan), np.zeros(36, dtype=bool)).sum() == 0


def naive_pool(box, parts, side):
    pooled = np.full((side, side), np.nan)
    for i in range(side):
        for j in range(side):
            y, x = box[0] + (i + 0.5) * box[2] / side, box[1] + (j + 0.5) * box[3] / side
            values = []
            for (top, left, height, width), scores in parts:
                if top <= y < top + height and left <= x < left + width:
                    value = scores[
                        int((y - top) / height * len(scores)), int((x - left) / width * len(scores))
                    ]
                    values += [] if np.isnan(value) else [value]
            if values:
                pooled[i, j] = np.mean(values)
    return pooled


def test_pooled_scores_are_means_over_the_parts_that_know_a_place() -> None:
    random = np.random.default_rng(5)
    scores = [random.normal(size=(4, 4)).astype(np.float32) for _ in range(4)]
    scores[1][2, 1] = np.nan
    boxes = [(0, 0, 60, 60), (10, 7, 33, 33), (30, 20, 41, 41), (25, 45, 17, 17)]
    parts = list(zip(boxes, scores, strict=True))
    pooled = pool_scores((5, 3, 70, 70), parts, 24)
    assert pooled.dtype == np.float32
    np.testing.assert_allclose(pooled, naive_pool((5, 3, 70, 70), parts, 24), rtol=1e-5)
    assert np.isnan(pooled[-1, -1])
    # One part alone, seen as a whole, is its own map.
    assert np.array_equal(pool_scores(boxes[0], parts[:1], 24), enlarge(scores[0], 24))


def test_scale_and_colours() -> None:
    values = np.arange(101.0)
    scaled = stretch(values)
    assert scaled[[0, 2, 3, 50, 98, 100]].tolist() == [0, 0, 1 / 96, 0.5, 1, 1]
    assert np.array_equal(stretch(np.array([np.nan, 3.0, 3.0])), [np.nan, 0.5, 0.5], equal_nan=True)
    assert np.isnan(stretch(np.full(4, np.nan))).all()
    drawn = colours(np.array([0.0, 1.0, -5.0, 9.0, np.nan]))
    assert np.array_equal(drawn[0], drawn[2])
    assert np.array_equal(drawn[1], drawn[3])
    assert drawn[4].tolist() == [HIDDEN_GRAY] * 3
    # Brighter means higher, also for who sees no colours.
    luminance = colours(np.linspace(0, 1, 200)) @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(luminance) >= -1).all()
    assert luminance[0] < 5
    assert luminance[-1] > 200


def test_enlarging_repeats_cells() -> None:
    cells = np.arange(9).reshape(3, 3)
    assert np.array_equal(enlarge(cells, 12), np.kron(cells, np.ones((4, 4), dtype=int)))


def test_names_are_written_in_letters_the_font_has() -> None:
    assert plain("Été à Åre.jpg") == "Ete a Are.jpg"
    assert plain("狗\n\x1b[31m\udcff") == "???[31m?"


def test_picture_files_keep_the_pixels() -> None:
    data = picture_file(VIEW)
    assert data == picture_file(VIEW)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), VIEW)
    assert Image.open(io.BytesIO(picture_file(VIEW, "JPEG"))).format == "JPEG"


def test_only_patches_keeps_the_marked_ones() -> None:
    shown = np.zeros(GRID**2, dtype=bool)
    shown[7] = True
    picture = only_patches(VIEW, shown)
    assert picture.dtype == np.uint8
    assert np.array_equal(patch(picture, 7), patch(VIEW, 7))
    assert (patch(picture, 8) == HIDDEN_GRAY).all()


@pytest.mark.parametrize("space", ["pixels", "normalised"])
def test_painted_views_keep_what_is_visible_and_show_the_prediction_elsewhere(space) -> None:
    model = random_teacher(dataclasses.replace(SMALL, output_space=space))
    pixels = patchify(torch.from_numpy(VIEW).permute(2, 0, 1)[None], 8)
    visible = torch.from_numpy(VISIBLE)[None]
    (picture,) = painted(model, pixels, visible)
    prediction, hidden = reconstruct(model, pixels, visible)
    expected = hidden_patches_pixels(prediction, take_patches(pixels, hidden), space)[0]
    for position in VISIBLE:
        assert np.array_equal(patch(picture, position), patch(VIEW, position))
    for position, values in zip(hidden[0].tolist(), expected, strict=True):
        wanted = np.clip(values.numpy().reshape(8, 8, 3), 0, 1) * 255
        assert np.abs(patch(picture, position) - wanted).max() <= 0.5 + 1e-3


def test_a_sheet_of_one_tile_has_room_for_its_scale() -> None:
    row = SheetRow(tiles=[VIEW], caption="")
    sheet = Sheet(
        title="",
        subtitle="",
        columns=[SheetColumn(title="a", detail="b")],
        rows=[row],
        scale_column=0,
        low="0",
        high="1",
        note="",
    )
    picture = draw_sheet(sheet)
    foot, left = sheet.tile_at(1, 0)
    side = sheet.side
    assert np.array_equal(picture[foot, left : left + side], colours(np.linspace(0, 1, side)))
    assert as_picture(torch.from_numpy(VIEW).permute(2, 0, 1)).shape == (SIDE, SIDE, 3)
