"""How far two reconstructions of one view lie apart; higher means more change.

`l1` and `l2` compare predictions at the hidden patches, in the teacher's own output space. `ssim` and `psnr`
compare whole images on a pixel scale from 0 to 1: original pixels where patches are visible, the decoder's
elsewhere. Every result belongs to one image alone: nothing is normalised over a batch.

Shape suffixes: N images, L grid positions, H hidden patches, P values of a patch, S side of an image in
pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from patchsieve.pipeline.images.patches import denormalise, normalise, unpatchify
from patchsieve.pipeline.row_config import Metric
from patchsieve.pipeline.teacher.architecture import OutputSpace, TeacherConfig

SSIM_WINDOW = 11
"""Side of the Gaussian window in pixels; its deviation is 1.5, as published."""

PSNR_CAP = 150.0
"""Decibels of equal images: more than float32 resolves, and finite so that scores stay numbers."""

_SSIM_DEVIATION = 1.5
_C1, _C2 = 0.01**2, 0.03**2
_PATCH_VARIANCE_FLOOR = 1e-6


def compares_whole_images(metric: Metric) -> bool:
    """Whether a metric needs all pixels of a view, not only those of its visible patches."""
    return metric in {"ssim", "psnr"}


def hidden_patches_pixels(prediction_NHP: Tensor, original_NHP: Tensor, space: OutputSpace) -> Tensor:
    """Predicted patches on a pixel scale from 0 to 1, float32 `[N, H, P]`, not clipped.

    `original_NHP`: the uint8 pixels of the same patches, whose mean and deviation undo a `normalised` output
    space (MAE: deviation = sqrt(unbiased variance + 1e-6)).
    """
    if space == "unknown":
        raise ValueError("predictions of a teacher with an unknown output space cannot become pixels")
    prediction_NHP = prediction_NHP.float()
    if space == "normalised":
        variance, mean = torch.var_mean(normalise(original_NHP), dim=-1, keepdim=True)
        prediction_NHP = prediction_NHP * (variance + _PATCH_VARIANCE_FLOOR).sqrt() + mean
    return denormalise(prediction_NHP)


def whole_images(
    prediction_NHP: Tensor, pixels_NLP: Tensor, hidden_NH: Tensor, config: TeacherConfig
) -> Tensor:
    """Images `[N, 3, S, S]`, 0 to 1: original pixels with the predicted patches in the hidden places.

    `pixels_NLP`: uint8 patches of the views; `hidden_NH`: int64 positions of the predictions.
    """
    index_NHP = hidden_NH[..., None].expand(-1, -1, pixels_NLP.shape[-1])
    painted = hidden_patches_pixels(prediction_NHP, pixels_NLP.gather(1, index_NHP), config.output_space)
    return unpatchify((pixels_NLP.float() / 255).scatter(1, index_NHP, painted), config.patch_size)


def absolute_change(change_HP: Tensor) -> Tensor:
    """Mean absolute value over the last two dimensions of differences `[..., H, P]`; overwrites them."""
    return change_HP.abs_().mean((-2, -1))


def squared_change(change_HP: Tensor) -> Tensor:
    """Mean square over the last two dimensions of differences `[..., H, P]`; overwrites them."""
    return change_HP.square_().mean((-2, -1))


def psnr_change(images: Tensor, anchors: Tensor) -> Tensor:
    """Negative peak signal-to-noise ratio in decibels of images `[..., 3, S, S]`, float32 `[...]`.

    The data range is 1. Never below -150, the value of equal images. The shapes may broadcast.
    """
    error = (images - anchors).square().mean((-3, -2, -1))
    return 10 * error.clamp(min=10 ** (-PSNR_CAP / 10)).log10()


def ssim_change(images: Tensor, anchors: Tensor) -> Tensor:
    """1 - structural similarity of images `[..., 3, S, S]`, float32 `[...]`; the shapes may broadcast.

    Data range 1, Gaussian window of 11 px and deviation 1.5, population covariance, mean over channels and
    over the positions where the window fits (Wang et al., "Image quality assessment", IEEE TIP 2004). With d
    = x - y, the two factors of the similarity are 1 - E(d)^2 / (..) and 1 - var(d) / (..), which keeps the
    digits of images that hardly differ.
    """
    change = images - anchors
    mean_y, mean_d = _blur(anchors), _blur(change)
    mean_x = mean_y + mean_d
    variance_x = _blur(images.square()) - mean_x.square()
    variance_y = _blur(anchors.square()) - mean_y.square()
    variance_d = _blur(change.square()) - mean_d.square()
    luminance = mean_d.square() / (mean_x.square() + mean_y.square() + _C1)
    structure = variance_d / (variance_x + variance_y + _C2)
    return (luminance + structure - luminance * structure).mean((-3, -2, -1))


def _blur(images: Tensor) -> Tensor:
    """Gaussian means where the window fits, `[..., 3, S - 10, S - 10]`."""
    offsets = torch.arange(SSIM_WINDOW, device=images.device, dtype=torch.float32) - SSIM_WINDOW // 2
    window = torch.exp(-offsets.square() / (2 * _SSIM_DEVIATION**2))
    window = (window / window.sum()).expand(3, 1, 1, -1)
    rows = functional.conv2d(images.flatten(0, -4), window, groups=3)
    blurred = functional.conv2d(rows, window.transpose(2, 3), groups=3)
    return blurred.reshape(*images.shape[:-3], *blurred.shape[1:])
