"""A diagnostic: how well the teacher rebuilds an image from the patches that a selector puts first.

It has no gate. Pseudo-scores say how much a reconstruction changes without a patch, not which patches suffice: patches
spread evenly may well rebuild an image better than the ones with the highest scores.

Shape suffixes: I images, S shares of patches kept, L grid positions, K kept and H hidden patches, P values of a patch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchsieve.pipeline.images.patches import IMAGENET_STD, normalise, take_patches
from patchsieve.pipeline.scoring.api import Teacher
from patchsieve.pipeline.scoring.changes import hidden_patches_pixels
from patchsieve.pipeline.scoring.scorer import reconstruct
from patchsieve.ranker.learning.agreement import Interval, mean_interval, paired_difference
from patchsieve.ranker.select.selection import Mask, keep_count, topk

SHARES = (0.1, 0.25, 0.5)
"""Shares of the patches that are kept."""

SPACES = ("pixel", "normalised")

FLAT_VARIANCE = 0.01
"""Least variance that a patch counts with, in ImageNet-normalised pixels: a deviation of 6 grey levels. A patch of
plain sky has a hundredth of it; its error over its own variance would drown all others."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReconstructionCurve:
    """Errors of one selector by share kept, by space (see `SPACES`): mean over images and interval.

    `versus_ranker`: the ranker's error less this one, paired by image; empty for the ranker itself.
    """

    errors: Mapping[str, tuple[Interval, ...]]
    versus_ranker: Mapping[str, tuple[Interval, ...]]


def reconstruction_curves(
    teacher: Teacher,
    patches_ILP: Tensor,
    scores: Mapping[str, NDArray[np.float32]],
    *,
    ranker: str,
    batch_size: int = 32,
    seed: int = 0,
) -> dict[str, ReconstructionCurve]:
    """The teacher's error when the highest of each selector's scores (`[I, L]` by name) are kept, by SHARES.

    `ranker`: the selector that the others are compared with. Raises ValueError for a teacher whose output space is
    unknown.
    """
    found = {
        name: errors_by_share(teacher, patches_ILP, scores_IL, batch_size=batch_size)
        for name, scores_IL in scores.items()
    }
    curves = {}
    for name, errors_2SI in found.items():
        errors = {
            space: tuple(mean_interval(errors_I, seed=seed) for errors_I in errors_2SI[number])
            for number, space in enumerate(SPACES)
        }
        versus = {
            space: tuple(
                paired_difference(mine, other, seed=seed)
                for mine, other in zip(found[ranker][number], errors_2SI[number], strict=True)
            )
            for number, space in enumerate(SPACES)
        }
        curves[name] = ReconstructionCurve(errors=errors, versus_ranker={} if name == ranker else versus)
    return curves


def errors_by_share(
    teacher: Teacher, patches_ILP: Tensor, scores_IL: NDArray[np.float32], *, batch_size: int = 32
) -> NDArray[np.float64]:
    """Mean squared error over all patches of an image, kept ones counting 0: float64 `[2, S, I]`.

    First in pixels on a scale from 0 to 1; then normalised, each patch's error over its own variance (which counts
    at least FLAT_VARIANCE), as a teacher of normalised patches is trained. `patches_ILP`: uint8.
    """
    masks = [topk(scores_IL, keep_count(patches_ILP.shape[1], share)) for share in SHARES]
    found = [mask_errors(teacher, patches_ILP, keep_IL, batch_size=batch_size) for keep_IL in masks]
    return np.stack(found, axis=1)


@torch.inference_mode()
def mask_errors(
    teacher: Teacher, patches_ILP: Tensor, keep_IL: Mask, *, batch_size: int = 32
) -> NDArray[np.float64]:
    """The errors of `errors_by_share`, float64 `[2, I]`, when each image keeps the patches of its own mask."""
    model = teacher.ready
    positions = patches_ILP.shape[1]
    deviation_P = torch.tensor(IMAGENET_STD, device=teacher.device).repeat(patches_ILP.shape[2] // 3)
    errors = np.zeros((len(SPACES), len(patches_ILP)))
    counts_I = keep_IL.sum(axis=1)
    for count in np.unique(counts_I[counts_I < positions]):  # nothing is to be rebuilt where all stay
        images = np.flatnonzero(counts_I == count)
        for start in range(0, len(images), batch_size):
            rows = images[start : start + batch_size]
            visible_NK = torch.from_numpy(keep_IL[rows].nonzero()[1].reshape(len(rows), -1))
            patches_NLP = patches_ILP[torch.from_numpy(rows)].to(teacher.device)
            predicted_NHP, hidden_NH = reconstruct(model, patches_NLP, visible_NK.to(teacher.device))
            original_NHP = take_patches(patches_NLP, hidden_NH)
            pixels_NHP = hidden_patches_pixels(predicted_NHP, original_NHP, model.config.output_space)
            change_NHP = pixels_NHP - original_NHP.float() / 255
            variance_NH = normalise(original_NHP).var(-1).clamp(min=FLAT_VARIANCE)
            squares_NH = change_NHP.square().mean(-1)
            scaled_NH = (change_NHP / deviation_P).square().mean(-1) / variance_NH
            for space, error_NH in enumerate((squares_NH, scaled_NH)):
                errors[space, rows] = error_NH.double().sum(-1).cpu().numpy() / positions
    return errors
