"""Ranking from Python: images as they come, scored as prune and training see them."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import patchsieve
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.images.patches import patchify
from patchsieve.pipeline.scoring.api import load_teacher, score_images
from patchsieve.ranker.model.api import center_patches, rank_images
from patchsieve.ranker.model.checkpoint import LoadedRanker, load_ranker, save_ranker
from tests.helpers.checkout import ROOT
from tests.helpers.photos import photo_pixels
from tests.helpers.rankers import TEACHER, small_config, small_ranker

PHOTOS = [photo_pixels(seed, 90, 120) for seed in range(3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("ranker"))
    save_ranker(path, small_ranker(), teacher=TEACHER, tables=["t"], temperature=1.0)
    return path


@pytest.fixture(scope="module")
def ranker(folder: str) -> LoadedRanker:
    return load_ranker(folder, device="cpu")


def test_every_patch_of_every_image(ranker: LoadedRanker) -> None:
    scores = rank_images(PHOTOS, ranker)
    assert scores.shape == (3, 16)
    assert scores.dtype == np.float32
    assert scores.std(axis=1).min() > 1e-3
    assert not np.allclose(scores[0], scores[1])
    # In batches of another size, from a generator, and one alone.
    np.testing.assert_allclose(rank_images(iter(PHOTOS), ranker, batch_size=2), scores, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(rank_images(PHOTOS[1:2], ranker), scores[1:2], rtol=1e-4, atol=1e-5)
    assert rank_images([], ranker).shape == (0, 16)


def test_the_centre_crop_is_what_is_ranked(ranker: LoadedRanker) -> None:
    # 73 x 73 px of which the middle 64 are shown at their own size: a crop, with nothing resampled.
    picture = photo_pixels(5, 73, 95)
    (height, width), side = picture.shape[:2], 64
    pixels = torch.from_numpy(picture).permute(2, 0, 1)
    top, left = (height - side) // 2, (width - side) // 2
    seen = patchify(pixels[None, :, top : top + side, left : left + side], 16)
    found = center_patches(pixels, small_config())
    assert (found.dtype, found.shape) == (torch.uint8, (16, 768))
    assert torch.equal(found, seen[0])
    expected = ranker.model.forward_image(seen).numpy()
    np.testing.assert_allclose(rank_images([picture], ranker), expected, rtol=1e-4, atol=1e-5)


def test_images_as_they_come(ranker: LoadedRanker) -> None:
    array = PHOTOS[0]
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    shapes: list[Any] = [
        array,
        Image.open(file),
        Image.fromarray(array).convert("RGBA"),
        torch.from_numpy(array).permute(2, 0, 1),
    ]
    first, *others = rank_images(shapes, ranker)
    for other in others:
        np.testing.assert_allclose(other, first, rtol=1e-4, atol=1e-5)
    gray = Image.fromarray(array).convert("L")
    of_mode_l, of_array = rank_images([gray, np.asarray(gray)], ranker)
    np.testing.assert_allclose(of_mode_l, of_array, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(rank_images(np.stack(PHOTOS), ranker)[0], first, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("images", "changes", "message"),
    [
        (PHOTOS[0], {}, "into a list"),
        (Image.fromarray(PHOTOS[0]), {}, "into a list"),
        ([PHOTOS[0].astype(np.float32)], {}, r"torch\.float32 \[3, 90, 120\]"),
        (PHOTOS, {"batch_size": 0}, "a batch of 0 images"),
    ],
)
def test_what_cannot_be_ranked(
    images: Any, changes: dict[str, Any], message: str, ranker: LoadedRanker
) -> None:
    with pytest.raises(UserError, match=message):
        rank_images(images, ranker, **changes)


def test_the_public_names_are_these_and_need_no_ray(folder: str) -> None:
    assert patchsieve.score_images is score_images
    assert patchsieve.load_teacher is load_teacher
    assert patchsieve.load_ranker is load_ranker
    assert patchsieve.rank_images is rank_images
    code = "import sys, patchsieve; print('torch' in sys.modules)"
    told = [
        subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, check=True, cwd=ROOT
        ).stdout.splitlines()
        for arguments in (["-c", code], ["-m", "tests.ranker.model.public_names", folder])
    ]
    assert told == [["False"], ["(1, 16)", "(2, 19)"]]
