"""How well a masked autoencoder reconstructs photos it never saw, beside predictors that know nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from patchsieve.pipeline.images.patches import normalise, patchify, take_patches, visible_count
from patchsieve.pipeline.images.views import apply_view, center_box
from patchsieve.pipeline.teacher.model import MaskedAutoencoder

MASK_SEED = 7


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReconstructionErrors:
    """Mean squared errors over the hidden patches, in ImageNet-normalised pixels.

    `variance` is the error of the best constant, one value per channel over all hidden pixels of these photos.
    """

    photos: int
    mask_ratio: float
    teacher: float
    nearest_visible: float
    mean_visible: float
    zero: float
    variance: float

    @property
    def explained(self) -> dict[str, float]:
        """Share of the hidden pixels' variance that each predictor explains: 1 - error / variance."""
        names = ("teacher", "nearest_visible", "mean_visible", "zero")
        return {name: 1 - getattr(self, name) / self.variance for name in names}


def centre_patches(photos: Sequence[Tensor], size: int, patch_size: int) -> Tensor:
    """Patches of the photos' centre crops, uint8 `[N, L, P]`; photos are uint8 `[3, H, W]`."""
    views = [apply_view(photo, center_box(*photo.shape[1:], size=size), size) for photo in photos]
    return patchify(torch.stack(views), patch_size)


def fixed_orders(count: int, positions: int) -> Tensor:
    """One permutation of the grid per photo, int64 `[count, positions]`, the same ones every time."""
    return torch.from_numpy(np.random.default_rng(MASK_SEED).random((count, positions)).argsort(1))


def nearest_visible(visible_NV: Tensor, hidden_NH: Tensor, grid: int) -> Tensor:
    """Index into the visible patches of the one nearest to each hidden patch, int64 `[N, H]`; ties: the first."""

    def places(positions: Tensor) -> Tensor:
        return torch.stack([positions // grid, positions % grid], dim=-1).float()

    return torch.cdist(places(hidden_NH), places(visible_NV)).argmin(dim=2)


@torch.inference_mode()
def reconstruction_errors(
    photos: Sequence[Tensor],
    predict: Callable[[Tensor, Tensor, Tensor], Tensor],
    *,
    size: int,
    patch_size: int,
    mask_ratio: float,
) -> ReconstructionErrors:
    """Measure on the centre crops of photos, one fixed mask each.

    `predict(visible patches [N, V, P], their positions, hidden positions [N, H])` gives normalised pixels
    `[N, H, P]` (see `teacher_prediction`).
    """
    patches = normalise(centre_patches(photos, size, patch_size))
    order = fixed_orders(len(patches), patches.shape[1])
    visible = visible_count(patches.shape[1], mask_ratio)
    seen_at, hidden_at = order[:, :visible], order[:, visible:]
    seen, truth = take_patches(patches, seen_at), take_patches(patches, hidden_at)
    channels = truth.reshape(-1, 3)

    def error(prediction: Tensor) -> float:
        return (prediction - truth).square().mean().item()

    mean_seen = seen.reshape(len(seen), -1, 3).mean(1).repeat(1, truth.shape[2] // 3)
    nearest = nearest_visible(seen_at, hidden_at, size // patch_size)
    patch_means = seen.reshape(*seen.shape[:2], -1, 3).mean(2).repeat(1, 1, truth.shape[2] // 3)
    return ReconstructionErrors(
        photos=len(photos),
        mask_ratio=mask_ratio,
        teacher=error(predict(seen, seen_at, hidden_at)),
        nearest_visible=error(take_patches(patch_means, nearest)),
        mean_visible=error(mean_seen[:, None]),
        zero=error(torch.zeros_like(truth)),
        variance=(channels - channels.mean(0)).square().mean().item(),
    )


def teacher_prediction(model: MaskedAutoencoder) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The prediction of a model that predicts ImageNet-normalised pixels; tensors in main memory, wherever it runs."""
    device = model.cls_token.device

    def predict(seen: Tensor, seen_at: Tensor, hidden_at: Tensor) -> Tensor:
        seen_at, hidden_at = seen_at.to(device), hidden_at.to(device)
        latent = model.encode(seen.to(device), seen_at)
        return model.decode(latent, seen_at, hidden_at, hidden_at.shape[1]).cpu()

    return predict
