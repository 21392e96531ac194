"""Pretraining of a small masked autoencoder from scratch: one process, photos in memory.

Follows MAE (He et al., arXiv 2111.06377): 75 % of the patches hidden, squared error of the hidden ones. Two
departures make it cheap on a processor: matrices of the blocks are optimised by Muon (orthogonalised momentum,
`torch.optim.Muon`), everything else by AdamW; and until the learning rate falls only a share of the hidden patches
is decoded, the others being left out of the decoder. The last part decodes all of them, as the teacher will.

Every step draws its batch from a generator keyed by (seed, step), so that a resumed run sees the same batches.
"""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from patchrank.pipeline.errors import UserError
from patchrank.pipeline.images import ViewBox, apply_view, draw_view
from patchrank.pipeline.patches import normalise, patchify, visible_count
from patchrank.pipeline.teacher.model import MaskedAutoencoder, OutputSpace, TeacherConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainRecipe:
    """How a teacher is pretrained. Learning rates are those of the plateau between warm-up and decay."""

    target: Literal["pixels", "normalised"] = "pixels"
    """Predict ImageNet-normalised pixels, or pixels normalised within each patch."""
    mask_ratio: float = 0.75
    steps: int = 10_000
    batch_size: int = 64
    lr: float = 5e-3
    """Muon's learning rate, for the matrices of the transformer blocks."""
    adam_lr: float = 2e-3
    """AdamW's learning rate, for embeddings, norms, biases and the prediction."""
    weight_decay: float = 0.05
    warmup_steps: int = 100
    decay_share: float = 0.5
    """Last share of the steps, in which the learning rates fall linearly to 0."""
    decoded_share: float = 0.43
    """Share of the hidden patches that is decoded before the last 15 % of the steps."""
    min_scale: float = 0.35
    """Smallest share of a photo's area that a training crop covers."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise UserError(f"pretrain: {self.steps} steps of {self.batch_size} images is no training")
        for name in ("mask_ratio", "decay_share", "decoded_share", "min_scale"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"pretrain: {name} is {getattr(self, name)}, must be in (0, 1]")

    def rate(self, step: int) -> float:
        """Factor on the learning rates at a step: linear warm-up, plateau, linear fall to 0."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        return warm * min(1.0, (self.steps - step) / (self.decay_share * self.steps))

    def decoded(self, step: int, hidden: int) -> int:
        """How many of the hidden patches are decoded at a step."""
        return hidden if step >= 0.85 * self.steps else math.ceil(self.decoded_share * hidden)


def training_box(rng: np.random.Generator, height: int, width: int, min_scale: float) -> ViewBox:
    """A random crop of `min_scale` to all of the area, aspect ratio 3/4 to 4/3, mirrored half of the time."""
    area = height * width * rng.uniform(min_scale, 1)
    ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    box_width = max(1, min(width, round(math.sqrt(area * ratio))))
    box_height = max(1, min(height, round(math.sqrt(area / ratio))))
    return ViewBox(
        top=int(rng.integers(height - box_height + 1)),
        left=int(rng.integers(width - box_width + 1)),
        height=box_height,
        width=box_width,
        hflip=bool(rng.random() < 0.5),
    )


def take(patches_NLP: Tensor, positions_NK: Tensor) -> Tensor:
    """Patches at the given positions, `[N, K, P]`."""
    return patches_NLP.gather(1, positions_NK[..., None].expand(-1, -1, patches_NLP.shape[-1]))


def in_target_space(patches: Tensor, target: str) -> Tensor:
    """ImageNet-normalised patches `[..., P]` as the decoder shall predict them."""
    if target == "pixels":
        return patches
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()


def hidden_error(
    model: MaskedAutoencoder, patches_NLP: Tensor, order_NL: Tensor, visible: int, decoded: int
) -> Tensor:
    """Mean squared error over the first `decoded` hidden patches of each image, in the teacher's output space.

    `order_NL`: a permutation of the grid for each image, its first `visible` entries being visible.
    """
    seen, hidden = order_NL[:, :visible], order_NL[:, visible : visible + decoded]
    latent = model.encode(take(patches_NLP, seen), seen)
    predicted = model.decode(latent, seen, hidden, decoded)
    target = in_target_space(take(patches_NLP, hidden), model.config.output_space)
    return (predicted.float() - target).square().mean()


class Pretraining:
    """A training run and its checkpoint; `photos` are uint8 `[3, H, W]` of any size."""

    def __init__(
        self,
        recipe: PretrainRecipe,
        config: TeacherConfig,
        photos: Sequence[Tensor],
        held_out: Sequence[Tensor],
        out: Path,
        *,
        device: torch.device,
        half: bool,
    ) -> None:
        """`half`: autocast to bfloat16."""
        space: OutputSpace = recipe.target
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.model = MaskedAutoencoder(dataclasses.replace(config, output_space=space)).to(device)
        self.step = 0
        self._photos, self._device, self._half = photos, device, half
        self._visible = visible_count(config.positions, recipe.mask_ratio)
        self._checkpoint, self._curve = out / "checkpoint.pt", out / "curve.csv"
        self._optimisers = self._make_optimisers()
        self._held_out = self._held_out_patches(held_out)

    def _make_optimisers(self) -> list[torch.optim.Optimizer]:
        named = list(self.model.named_parameters())
        matrices = [p for name, p in named if "blocks." in name and p.ndim == 2]
        others = [p for name, p in named if not ("blocks." in name and p.ndim == 2)]
        return [
            torch.optim.Muon(
                matrices,
                lr=self.recipe.lr,
                weight_decay=self.recipe.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            ),
            torch.optim.AdamW(others, lr=self.recipe.adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
        ]

    def _held_out_patches(self, photos: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        size = self.model.config.image_size
        views = [
            apply_view(
                p, draw_view(0, "", 0, height=p.shape[1], width=p.shape[2], crop="center", size=size), size
            )
            for p in photos
        ]
        order = np.random.default_rng(7).random((len(views), self.model.config.positions)).argsort(1)
        patches = patchify(torch.stack(views), self.model.config.patch_size)
        return patches, torch.from_numpy(order)

    def _batch(self, step: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng([self.recipe.seed, step])
        views = []
        for index in rng.integers(len(self._photos), size=self.recipe.batch_size):
            photo = self._photos[index]
            box = training_box(rng, photo.shape[1], photo.shape[2], self.recipe.min_scale)
            views.append(apply_view(photo, box, self.model.config.image_size))
        order = rng.random((len(views), self.model.config.positions)).argsort(1)
        return patchify(torch.stack(views), self.model.config.patch_size), torch.from_numpy(order)

    def _error(self, patches: Tensor, order: Tensor, decoded: int) -> Tensor:
        pixels = normalise(patches.to(self._device))
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._half):
            return hidden_error(self.model, pixels, order.to(self._device), self._visible, decoded)

    def held_out_error(self) -> float:
        """Mean squared error of all hidden patches of the held-out photos' centre crops, one fixed mask each."""
        patches, order = self._held_out
        with torch.inference_mode():
            return self._error(patches, order, order.shape[1] - self._visible).item()

    def train_step(self, patches: Tensor, order: Tensor) -> float:
        """One optimiser step; returns its loss."""
        factor = self.recipe.rate(self.step)
        for optimiser, rate in zip(self._optimisers, (self.recipe.lr, self.recipe.adam_lr), strict=True):
            for group in optimiser.param_groups:
                group["lr"] = rate * factor
            optimiser.zero_grad()
        hidden = order.shape[1] - self._visible
        loss = self._error(patches, order, self.recipe.decoded(self.step, hidden))
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser in self._optimisers:
            optimiser.step()
        self.step += 1
        return loss.item()

    def run(self, *, every: int, report: Callable[[int, float, float], None]) -> None:
        """Train to the recipe's last step; every `every` steps measure, `report(step, loss, error)` and save."""
        total, counted = 0.0, 0
        with ThreadPoolExecutor(1) as ahead:
            following = ahead.submit(self._batch, self.step)
            while self.step < self.recipe.steps:
                patches, order = following.result()
                following = ahead.submit(self._batch, self.step + 1)
                total, counted = total + self.train_step(patches, order), counted + 1
                if self.step % every == 0 or self.step == self.recipe.steps:
                    error = self.held_out_error()
                    self.save()
                    with self._curve.open("a", newline="") as file:
                        csv.writer(file).writerow([self.step, f"{total / counted:.5f}", f"{error:.5f}"])
                    report(self.step, total / counted, error)
                    total, counted = 0.0, 0

    def save(self) -> None:
        """Replace the checkpoint atomically."""
        state: dict[str, Any] = {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self._optimisers],
        }
        temporary = self._checkpoint.with_suffix(".tmp")
        torch.save(state, temporary)
        temporary.replace(self._checkpoint)

    def resume(self) -> bool:
        """Go on from the checkpoint; False when there is none."""
        if not self._checkpoint.exists():
            return False
        state = torch.load(self._checkpoint, weights_only=True, map_location=self._device)
        try:
            self.model.load_state_dict(state["model"])
        except RuntimeError as error:
            raise UserError(f"{self._checkpoint} is of another architecture: {error}") from error
        for optimiser, saved in zip(self._optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.step = int(state["step"])
        return True
