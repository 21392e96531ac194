"""Scoring from Python: images as they come, the same scores as in a table, maps of the whole grid."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.images.decode import decode_image
from patchsieve.pipeline.scoring.api import ImageScores, Teacher, as_pixels, load_teacher, score_images
from tests.helpers.photos import encode, photo_pixels, write_shard
from tests.helpers.score_runs import rows_of, save_small_teacher, score_config, score_here

PHOTOS = [photo_pixels(seed, 60, 80) for seed in range(3)]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_small_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def teacher(path: str) -> Teacher:
    return load_teacher(path, device="cpu", precision="fp32")


def same(one: ImageScores, other: ImageScores) -> bool:
    equal = (one.visible == other.visible).all() and (one.score == other.score).all()
    return bool(equal) and (one.boxes, one.grid) == (other.boxes, other.grid)


def test_every_patch_is_scored_once(teacher: Teacher) -> None:
    (scores, *_) = score_images(PHOTOS, teacher)
    # 3 of 36 patches visible: twelve views show all, and no patch twice.
    assert scores.visible.dtype == np.int16
    assert scores.score.dtype == np.float32
    assert scores.visible.shape == scores.score.shape == (12, 3)
    assert sorted(scores.visible.reshape(-1).tolist()) == list(range(36))
    assert len(set(scores.boxes)) == 1
    heat = scores.heat_map()
    assert heat.shape == (6, 6)
    assert np.isfinite(heat).all()
    flat = heat.reshape(-1)[scores.visible.astype(int)]
    np.testing.assert_allclose(flat, np.log(scores.score), rtol=1e-6)


def test_images_as_they_come(teacher: Teacher) -> None:
    array = PHOTOS[0]
    shapes: list[Any] = [
        array,
        np.asfortranarray(array),
        Image.fromarray(array),
        Image.fromarray(array).convert("RGBA"),
        torch.from_numpy(array).permute(2, 0, 1),
    ]
    first, *others = score_images(shapes, teacher, keys=["key"] * len(shapes), views=4)
    assert all(same(first, other) for other in others)
    gray = Image.fromarray(array).convert("L")
    of_mode_l, of_array = score_images([gray, np.asarray(gray)], teacher, keys=["key"] * 2, views=4)
    assert same(of_mode_l, of_array)
    assert not same(of_array, first)


def test_scores_are_those_of_a_table(teacher: Teacher, path: str, tmp_path: Path) -> None:
    pictures = [encode(pixels, "PNG") for pixels in PHOTOS]
    shard = write_shard(tmp_path / "a.tar", [(f"k{i}", {"png": data}) for i, data in enumerate(pictures)])
    settings: dict[str, Any] = {"crop": "random", "masks": "spread", "removal": "encoder", "seed": 5}
    score_here(score_config([shard], tmp_path / "out", path, views="3", **settings))
    rows = rows_of(tmp_path / "out")
    images = (Image.open(io.BytesIO(data)) for data in pictures)
    results = score_images(images, teacher, keys=["k0", "k1", "k2"], views=3, batch_size=4, **settings)
    for number, result in enumerate(results):
        for view in range(3):
            row, box = rows[str(shard), f"k{number}", view], result.boxes[view]
            assert row["visible"] == result.visible[view].tolist()
            assert [row[f"crop_{side}"] for side in ("top", "left", "height", "width")] == [
                getattr(box, side) for side in ("top", "left", "height", "width")
            ]
            assert row["score"] == pytest.approx(result.score[view].tolist(), rel=1e-5, abs=0)


def test_keys_draw_the_masks(teacher: Teacher) -> None:
    one, two = score_images([PHOTOS[0]] * 2, teacher, views=4)
    assert (one.visible != two.visible).any(), "by default each image has a key of its own"
    assert same(one, score_images(PHOTOS[:1], teacher, views=4)[0])
    assert np.isnan(one.heat_map()).sum() == 36 - 12


@pytest.mark.parametrize(
    ("images", "changes", "message"),
    [
        (PHOTOS, {"mask_ratio": 0.95}, "leaves 1 of 36"),
        (PHOTOS, {"mask_ratio": 1.0}, "between 0 and 1"),
        (PHOTOS, {"views": 0}, "at least one view"),
        (PHOTOS, {"metric": "l3"}, "metric is 'l3'"),
        ([PHOTOS[0].astype(np.float32)], {}, r"torch\.float32 \[3, 60, 80\]"),
        ([PHOTOS[0][..., :2]], {}, r"torch\.uint8 \[2, 60, 80\]"),
        ([torch.zeros(1, 3, 8, 8, dtype=torch.uint8)], {}, "neither a file, a PIL image"),
        (PHOTOS[0], {}, "into a list"),
        (Image.fromarray(PHOTOS[0]), {}, "into a list"),
        ("photo.jpg", {}, "into a list"),
        (Path("photo.jpg"), {}, "into a list"),
    ],
)
def test_what_cannot_be_scored(images: Any, changes: dict[str, Any], message: str, teacher: Teacher) -> None:
    with pytest.raises(UserError, match=message):
        score_images(images, teacher, **changes)


def test_teachers_by_name(teacher: Teacher, path: str) -> None:
    (named,) = score_images(PHOTOS[:1], path, views=2)
    assert named.visible.tolist() == score_images(PHOTOS[:1], teacher, views=2)[0].visible.tolist()


def test_a_batch_in_one_array(teacher: Teacher) -> None:
    stacked = score_images(np.stack(PHOTOS), teacher, views=2)
    assert all(same(*pair) for pair in zip(stacked, score_images(PHOTOS, teacher, views=2), strict=True))


def test_pixels_are_not_changed() -> None:
    array = PHOTOS[0].copy()
    pixels = as_pixels(array)
    assert (tuple(pixels.shape), pixels.dtype) == ((3, 60, 80), torch.uint8)
    assert (pixels.permute(1, 2, 0).numpy() == PHOTOS[0]).all()
    assert (array == PHOTOS[0]).all()


def test_teachers_by_path(path: str, tmp_path: Path) -> None:
    loaded = load_teacher(path, device="cpu", precision="bf16")
    assert (loaded.precision, str(loaded.device), loaded.file.name) == ("bf16", "cpu", "small")
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    unknown = save_small_teacher(tmp_path, output_space="unknown")
    assert load_teacher(unknown, precision="fp32", output_space="pixels").file.config.output_space == "pixels"
    with pytest.raises(UserError, match="no teacher at"):
        load_teacher(str(tmp_path / "none.safetensors"))


def test_images_are_decoded_as_those_of_shards(tmp_path: Path) -> None:
    pixels = photo_pixels(1, 40, 60)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(pixels, exif=exif)
    (tmp_path / "a.jpg").write_bytes(data)
    expected = decode_image(data)
    with Image.open(tmp_path / "a.jpg") as image:
        for given in (data, tmp_path / "a.jpg", str(tmp_path / "a.jpg"), image):
            assert as_pixels(given).equal(expected)
    deep = Image.fromarray((pixels[:, :, 0].astype(np.uint16) << 8) + 7)
    assert as_pixels(deep).equal(torch.from_numpy(pixels[:, :, 0]).expand(3, -1, -1))
    for refused, reason in (
        (Image.fromarray(pixels[:, :, 0].astype(np.float32)), "floating-point pixels"),
        (b"no image", "not an image"),
        (tmp_path / "none.jpg", "no image at"),
        (pixels.astype(np.float32), "neither a file"),
    ):
        with pytest.raises(UserError, match=reason):
            as_pixels(refused)
