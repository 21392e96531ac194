"""Metrics on whole images, against scikit-image where it knows them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from patchsieve.pipeline.images.patches import normalise, patchify
from patchsieve.pipeline.scoring.changes import (
    absolute_change,
    hidden_patches_pixels,
    psnr_change,
    squared_change,
    ssim_change,
    whole_images,
)
from patchsieve.pipeline.teacher.architecture import TeacherConfig
from tests.helpers.photos import photo_pixels


def photos(count: int, size: int) -> Tensor:
    """Photos `[count, 3, size, size]` on a scale from 0 to 1."""
    stack = np.stack([photo_pixels(seed, size, size) for seed in range(count)])
    return torch.from_numpy(stack).permute(0, 3, 1, 2) / 255


@pytest.mark.parametrize("noise", [0.3, 0.03, 0.003])
def test_ssim_and_psnr_equal_scikit_image(noise: float) -> None:
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity  # brings all of scipy.stats

    anchors = photos(3, 48)
    images = anchors + noise * torch.randn(anchors.shape, generator=torch.Generator().manual_seed(0))
    ssim, psnr = ssim_change(images, anchors), psnr_change(images, anchors)
    for row in range(3):
        x, y = (batch[row].permute(1, 2, 0).double().numpy() for batch in (images, anchors))
        similarity = structural_similarity(
            x,
            y,
            data_range=1.0,
            channel_axis=2,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        assert float(ssim[row]) == pytest.approx(1 - similarity, rel=1e-4)
        assert float(psnr[row]) == pytest.approx(-peak_signal_noise_ratio(y, x, data_range=1.0), rel=1e-6)


def test_a_result_belongs_to_one_image_alone() -> None:
    anchors = photos(3, 32)
    images = anchors.roll(1, 0)
    for measure in (ssim_change, psnr_change):
        alone = torch.cat([measure(images[row : row + 1], anchors[row : row + 1]) for row in range(3)])
        torch.testing.assert_close(measure(images, anchors), alone, rtol=1e-6, atol=0)


def test_one_anchor_serves_many_images() -> None:
    anchors, images = photos(2, 16), photos(6, 16).reshape(2, 3, 3, 16, 16)
    for measure in (ssim_change, psnr_change):
        together = measure(images, anchors[:, None])
        apart = torch.stack([measure(images[row], anchors[row].expand(3, -1, -1, -1)) for row in range(2)])
        torch.testing.assert_close(together, apart, rtol=1e-6, atol=0)


def test_equal_images_have_finite_scores() -> None:
    image = photos(1, 16)
    assert ssim_change(image, image).tolist() == [0.0]
    assert psnr_change(image, image).tolist() == pytest.approx([-150.0])


def test_small_changes_keep_their_digits() -> None:
    """A hundredth of the change gives a ten-thousandth of 1 - ssim, far below float32's resolution near 1."""
    anchor = photos(1, 32)
    change = torch.randn(anchor.shape, generator=torch.Generator().manual_seed(0))
    large, small = (float(ssim_change(anchor + scale * change, anchor)) for scale in (1e-3, 1e-5))
    assert small == pytest.approx(large / 1e4, rel=0.02)


def test_changes_are_means_per_image() -> None:
    change = torch.tensor([[[1.0, -3.0], [0.0, 2.0]], [[0.0, 0.0], [0.0, 4.0]]])
    assert absolute_change(change.clone()).tolist() == [1.5, 1.0]
    assert squared_change(change.clone()).tolist() == [3.5, 4.0]


@pytest.mark.parametrize("space", ["pixels", "normalised"])
def test_perfect_predictions_give_back_the_photo(space: str) -> None:
    config = TeacherConfig(image_size=32, patch_size=8, output_space=space)
    image = (photos(2, 32) * 255).round().byte()
    pixels = patchify(image, 8)
    hidden = torch.tensor([[0, 5, 7], [15, 2, 3]])
    original = torch.stack([pixels[row, hidden[row]] for row in range(2)])
    target = normalise(original)
    if space == "normalised":
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    assert torch.allclose(
        hidden_patches_pixels(target, original, config.output_space), original / 255, atol=1e-5
    )
    assert torch.allclose(whole_images(target, pixels, hidden, config), image / 255, atol=1e-5)
    # Only the hidden places take predictions.
    painted = patchify(whole_images(torch.zeros_like(target), pixels, hidden, config), 8)
    changed = (painted - pixels / 255).abs().amax(-1) > 1e-3
    assert [row.nonzero().flatten().tolist() for row in changed] == [[0, 5, 7], [2, 3, 15]]


def test_an_unknown_output_space_has_no_pixels() -> None:
    with pytest.raises(ValueError, match="unknown output space"):
        hidden_patches_pixels(torch.zeros(1, 1, 12), torch.zeros(1, 1, 12, dtype=torch.uint8), "unknown")
