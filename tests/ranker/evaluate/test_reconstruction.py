"""The reconstruction diagnostic against loops over images and patches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from patchsieve.pipeline.images.patches import IMAGENET_MEAN, IMAGENET_STD
from patchsieve.pipeline.teacher.model import MaskedAutoencoder
from patchsieve.ranker.evaluate.reconstruction import (
    FLAT_VARIANCE,
    SHARES,
    errors_by_share,
    reconstruction_curves,
)
from tests.helpers.evaluations import evaluation_images, ranker_of, small_teacher
from tests.helpers.teachers import SMALL

IMAGES = 3


def slow_errors(
    model: MaskedAutoencoder, patches: torch.Tensor, order: list[int], kept: int, space: str
) -> tuple:
    """Errors of one image by definition, from the model itself."""
    mean, deviation = np.array(IMAGENET_MEAN), np.array(IMAGENET_STD)
    visible = sorted(order[:kept])
    hidden = [place for place in range(SMALL.positions) if place not in visible]
    values = (patches.double().numpy().reshape(SMALL.positions, -1, 3) / 255 - mean) / deviation
    seen = torch.from_numpy(values[visible].reshape(1, kept, -1)).float()
    at, masked = torch.tensor([visible]), torch.tensor([hidden])
    with torch.inference_mode():
        predicted = model.decode(model.encode(seen, at), at, masked, len(hidden))[0].double().numpy()
    pixel = normalised = 0.0
    for place, prediction in zip(hidden, predicted, strict=True):
        truth = values[place].reshape(-1)
        scale, shift = (truth.var(ddof=1) + 1e-6) ** 0.5, truth.mean()
        guess = prediction * scale + shift if space == "normalised" else prediction
        change = (guess - truth).reshape(-1, 3)
        pixel += ((change * deviation) ** 2).mean() / SMALL.positions
        normalised += (change**2).mean() / max(truth.var(ddof=1), FLAT_VARIANCE) / SMALL.positions
    return pixel, normalised


@pytest.mark.parametrize("space", ["pixels", "normalised"])
def test_errors_equal_the_loops(space: str, tmp_path: Path) -> None:
    teacher = small_teacher(tmp_path, output_space=space)
    patches = evaluation_images(IMAGES, ranker_of(tmp_path / "ranker", teacher)).patches
    # One flat patch, as plain sky has.
    patches[0, 7] = 200
    scores = np.random.default_rng(0).normal(size=patches.shape[:2]).astype(np.float32)
    found = errors_by_share(teacher, patches, scores, batch_size=2)
    assert found.shape == (2, len(SHARES), IMAGES)
    for number, kept in enumerate([3, 9, 18]):
        for image in range(IMAGES):
            order = np.argsort(-scores[image]).tolist()
            expected = slow_errors(teacher.model, patches[image], order, kept, space)
            assert found[:, number, image] == pytest.approx(expected, rel=1e-4)


def test_others_are_paired_with_the_ranker(tmp_path: Path) -> None:
    teacher = small_teacher(tmp_path)
    patches = evaluation_images(IMAGES, ranker_of(tmp_path / "ranker", teacher)).patches
    random = np.random.default_rng(0)
    scores = {name: random.normal(size=patches.shape[:2]).astype(np.float32) for name in ("mine", "other")}
    curves = reconstruction_curves(teacher, patches, scores, ranker="mine")
    mine, other = (errors_by_share(teacher, patches, scores[name]) for name in ("mine", "other"))
    assert curves["mine"].versus_ranker == {}
    for number, space in enumerate(("pixel", "normalised")):
        values = [interval.value for interval in curves["other"].errors[space]]
        assert values == pytest.approx(other[number].mean(axis=1))
        less = [interval.value for interval in curves["other"].versus_ranker[space]]
        assert less == pytest.approx((mine - other)[number].mean(axis=1))
