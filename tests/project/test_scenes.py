"""The scenes that benchmarks make, what arms leave of them, and the intervals over them."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks._scene_arms import Arm, candidates, controls, kept, pieces, share_kept, views
from benchmarks._scene_maker import PATCH, Photo, Scene, ellipse, make_scene, sharpness, texture_like
from benchmarks._scene_photos import Material, split_material
from benchmarks._scene_probe import square_means
from benchmarks.scenes import choose
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.images.views import encode_view
from patchsieve.pipeline.randomness import KeyedRandom
from tests.helpers.photos import photo_pixels

SIZE = 448


def photo(seed: int, height: int, width: int, label: str = "") -> Photo:
    pixels = torch.from_numpy(photo_pixels(seed, height, width)).permute(2, 0, 1)
    return Photo(f"photo-{seed}", label, encode_view(pixels), min(height, width))


OBJECTS = {name: [photo(seed, 120, 180, name)] for seed, name in enumerate(("anchor", "bass"))}
GROUNDS = [photo(10 + seed, 320, 360) for seed in range(3)]


def scene(number: int = 0, filling: str = "object", tiles: int = 1) -> Scene:
    return make_scene(OBJECTS, GROUNDS, size=SIZE, tiles=tiles, seed=3, number=number, filling=filling)


def test_scenes_come_from_seed_and_number_alone() -> None:
    first, again, other = scene(1), scene(1), scene(2)
    assert torch.equal(first.pixels, again.pixels)
    assert first.box == again.box
    assert first.box != other.box


@pytest.mark.parametrize("number", range(6))
def test_an_object_lies_in_its_box_off_the_grid_and_changes_nothing_else(number: int) -> None:
    made, bare = scene(number), scene(number, "nothing")
    top, left, height, width = made.box
    assert 80 <= max(height, width) <= 160
    assert top % PATCH
    assert left % PATCH
    assert top + height <= SIZE
    assert left + width <= SIZE
    changed = (made.pixels != bare.pixels).any(0)
    assert not (changed & (made.alpha == 0)).any()
    assert changed[top : top + height, left : left + width].float().mean() > 0.5
    assert made.alpha[top + height // 2, left + width // 2] == 1
    one, other = made.sharpness
    assert one == pytest.approx(other, rel=0.1)


def test_an_ellipse_fades_towards_its_rim() -> None:
    alpha = ellipse(60, 100)
    middle = alpha[30]
    assert middle[50] == 1
    assert middle[0] < 0.05
    assert (middle[:50].diff() >= 0).all()
    assert 0 < ((alpha > 0) & (alpha < 1)).float().mean() < 0.3
    assert alpha[0, 0] == 0


def test_texture_has_the_object_s_colours_and_contrast() -> None:
    pixels = torch.from_numpy(photo_pixels(5, 90, 120)).permute(2, 0, 1).float()
    alpha = ellipse(90, 120)
    texture = texture_like(pixels, alpha, KeyedRandom(0, "", "texture"))
    means, deviations = [], []
    for picture in (pixels, texture):
        mean = (picture * alpha).sum((1, 2)) / alpha.sum()
        spread = ((picture - mean[:, None, None]).square() * alpha).sum((1, 2)) / alpha.sum()
        means.append(mean.tolist())
        deviations.append(spread.sqrt().tolist())
    assert means[0] == pytest.approx(means[1], abs=2)
    assert deviations[0] == pytest.approx(deviations[1], rel=0.05)
    assert abs(np.corrcoef(pixels.flatten(), texture.flatten())[0, 1]) < 0.5


def test_texture_fills_the_same_ellipse() -> None:
    made, textured = scene(3), scene(3, "texture")
    assert torch.equal(made.alpha, textured.alpha)
    outside = made.alpha == 0
    assert torch.equal(made.pixels[:, outside], textured.pixels[:, outside])
    assert not torch.equal(made.pixels, textured.pixels)


def test_blur_lowers_sharpness_and_contrast_does_not() -> None:
    noise = torch.from_numpy(np.random.default_rng(0).uniform(0, 255, (3, 40, 40)))
    assert sharpness(noise / 4 + 90) == pytest.approx(sharpness(noise), rel=1e-4)
    smooth = torch.nn.functional.avg_pool2d(noise, 3, 1)
    assert sharpness(smooth) < sharpness(noise)


def test_backgrounds_that_are_too_small_are_refused_and_mosaics_take_smaller_ones() -> None:
    small = [photo(30 + seed, 160, 200) for seed in range(4)]
    with pytest.raises(UserError, match="0 of 4 backgrounds have a short side of 320 px"):
        make_scene(OBJECTS, small, size=SIZE, tiles=1, seed=0, number=0)
    mosaic = make_scene(OBJECTS, small, size=SIZE, tiles=2, seed=0, number=0)
    assert mosaic.background in {one.key for one in small}


def test_who_is_told_keeps_the_object_and_tokens_are_counted() -> None:
    made = scene(4)
    _, chosen, *_ = candidates(0.25, "crop")
    others = {arm.selector: arm for arm in controls(chosen)}
    told = others["told window"]
    top, left, height, width = made.box
    line = np.arange(14) * 32 + 16
    nearness = -((line[:, None] - top - height / 2) ** 2 + (line[None] - left - width / 2) ** 2)
    keep = kept(told, nearness.astype(np.float32).reshape(-1), SIZE)
    assert keep.sum() == 49
    assert share_kept(made, keep) == pytest.approx(1, abs=1e-3)
    assert [view.shape for view in views(told, made, keep)[0]] == [(3, 224, 224)]
    assert others.keys() >= {"edge window x2", "centre window", "resized", "full", "jpeg"}
    assert {arm.tokens(SIZE) for arm in others.values()} == {196, 784}
    counts = {arm.selector: arm.tokens(SIZE) for arm in candidates(0.25, "crop")}
    assert max(counts.values()) == 196
    assert counts["ranker window +112px"] == 36 * 4 + 49


def test_kept_pieces_are_cropped_apart_and_dropped_blocks_are_flat() -> None:
    keep = np.zeros((14, 14), np.bool_)
    keep[:2, :3] = keep[5:9, 12:] = True
    assert pieces(keep.reshape(-1)) == [(0, 2, 0, 3), (5, 9, 12, 14)]
    made = scene(5)
    arm = Arm(scores="ranker", shape="topk", keep=0.1, way="crop")
    crops, packed = views(arm, made, keep.reshape(-1))
    assert [view.shape for view in crops] == [(3, 64, 96), (3, 128, 64)]
    ((whole,), nbytes) = views(dataclasses.replace(arm, as_jpeg=True), made, keep.reshape(-1))
    assert whole.shape == made.pixels.shape
    assert nbytes <= packed
    ((filled,), _) = views(dataclasses.replace(arm, way="fill"), made, keep.reshape(-1))
    assert torch.equal(filled[:, :64, :96], made.pixels[:, :64, :96])
    assert (filled[:, 96:128, 96:128].flatten(1).float().std(1) == 0).all()


def test_validation_shares_no_photo_with_the_head() -> None:
    photos = [Photo(f"{number}", "a", b"", 400) for number in range(100)]
    head, validation = split_material(Material({"a": photos}, photos), seed=0)
    assert not {one.key for one in head.objects["a"]} & {one.key for one in validation.objects["a"]}
    assert not {one.key for one in head.backgrounds} & {one.key for one in validation.backgrounds}
    assert len(head.objects["a"]) + len(validation.objects["a"]) == 100
    assert 5 < len(validation.objects["a"]) < 40


def test_squares_of_an_enlarged_picture_are_those_of_the_picture() -> None:
    maps = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 7, 7))).float()
    fine = maps.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert torch.allclose(square_means(fine, 2), square_means(maps), atol=1e-6)


def test_a_selector_that_was_fixed_before_is_no_choice() -> None:
    nothing: Any = None
    found = choose(nothing, nothing, argparse.Namespace(selector="leverage window x2"))
    assert (found["selector"], found["validation"]) == ("leverage window x2", {})
    with pytest.raises(UserError, match="--selector is 'window', must be one of: ranker window, "):
        choose(nothing, nothing, argparse.Namespace(selector="window"))
