"""Pretraining of a small masked autoencoder from scratch: one process, photos in memory.

Follows MAE (He et al., arXiv 2111.06377): 75 % of the patches hidden, squared error of the hidden ones. Two
departures make it cheap on a processor: matrices of the blocks are optimised by Muon (orthogonalised momentum,
`torch.optim.Muon`), everything else by AdamW; and until the learning rate falls only a share of the hidden patches
is decoded, the others being left out of the decoder. The last part decodes all of them, as the teacher will.

Every step draws its batch from a generator keyed by (seed, step), so that a resumed run sees the same batches.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.images.patches import normalise, patchify, take_patches, visible_count
from patchsieve.pipeline.images.views import ViewBox, apply_view
from patchsieve.pipeline.pretrain.config import PretrainConfig
from patchsieve.pipeline.pretrain.report import centre_patches, fixed_orders
from patchsieve.pipeline.teacher.architecture import TeacherConfig
from patchsieve.pipeline.teacher.model import MaskedAutoencoder
from patchsieve.pipeline.threads import Prefetch

FULL_SHARE = 0.15
"""Last share of the steps, in which all hidden patches are decoded."""


def architecture(config: PretrainConfig) -> TeacherConfig:
    """The model that is trained."""
    return TeacherConfig(
        image_size=config.image_size,
        patch_size=config.patch_size,
        width=config.width,
        depth=config.depth,
        heads=config.heads,
        decoder_width=config.decoder_width,
        decoder_depth=config.decoder_depth,
        decoder_heads=config.decoder_heads,
        output_space=config.target,
    )


def rate_factor(config: PretrainConfig, step: int) -> float:
    """Factor on the learning rates at a step: linear warm-up, plateau, linear fall to 0."""
    warm = min(1.0, (step + 1) / config.warmup_steps)
    return warm * min(1.0, (config.steps - step) / (config.decay_share * config.steps))


def decoded_patches(config: PretrainConfig, step: int, hidden: int) -> int:
    """How many of the hidden patches are decoded at a step."""
    return hidden if step >= (1 - FULL_SHARE) * config.steps else math.ceil(config.decoded_share * hidden)


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
    latent = model.encode(take_patches(patches_NLP, seen), seen)
    predicted = model.decode(latent, seen, hidden, decoded)
    target = in_target_space(take_patches(patches_NLP, hidden), model.config.output_space)
    return (predicted.float() - target).square().mean()


class Pretraining:
    """A training run and its checkpoint; `photos` are uint8 `[3, H, W]` of any size."""

    def __init__(
        self,
        config: PretrainConfig,
        photos: Sequence[Tensor],
        held_out: Sequence[Tensor],
        out: Path,
        *,
        device: torch.device,
    ) -> None:
        """`half` may be set to autocast to bfloat16."""
        torch.manual_seed(config.seed)
        self.config = config
        self.model = MaskedAutoencoder(architecture(config)).to(device)
        self.step = 0
        self.half = False
        self._photos, self._device = photos, device
        self._visible = visible_count(self.model.config.positions, config.mask_ratio)
        self._checkpoint, self._local_curve = out / "checkpoint.pt", out / "curve.csv"
        self._optimisers = self._make_optimisers()
        patches = centre_patches(held_out, config.image_size, config.patch_size)
        self._held_out = patches, fixed_orders(*patches.shape[:2])

    def _make_optimisers(self) -> list[torch.optim.Optimizer]:
        named = list(self.model.named_parameters())
        matrices = [p for name, p in named if "blocks." in name and p.ndim == 2]
        others = [p for name, p in named if not ("blocks." in name and p.ndim == 2)]
        return [
            torch.optim.Muon(
                matrices,
                lr=self.config.lr,
                weight_decay=self.config.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            ),
            torch.optim.AdamW(others, lr=self.config.adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
        ]

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Patches (uint8 `[N, L, P]`) and order of the grid (`[N, L]`) of a step: the same whenever it is asked for."""
        rng = np.random.default_rng([self.config.seed, step])
        views = []
        for index in rng.integers(len(self._photos), size=self.config.batch_size):
            photo = self._photos[index]
            box = training_box(rng, photo.shape[1], photo.shape[2], self.config.min_scale)
            views.append(apply_view(photo, box, self.model.config.image_size))
        order = rng.random((len(views), self.model.config.positions)).argsort(1)
        return patchify(torch.stack(views), self.model.config.patch_size), torch.from_numpy(order)

    def _error(self, patches: Tensor, order: Tensor, decoded: int) -> Tensor:
        pixels = normalise(patches.to(self._device))
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self.half):
            return hidden_error(self.model, pixels, order.to(self._device), self._visible, decoded)

    def held_out_error(self) -> float:
        """Mean squared error of all hidden patches of the held-out photos' centre crops, one fixed mask each."""
        patches, order = self._held_out
        with torch.inference_mode():
            return self._error(patches, order, order.shape[1] - self._visible).item()

    def train_step(self, patches: Tensor, order: Tensor) -> float:
        """One optimiser step; returns its loss."""
        factor = rate_factor(self.config, self.step)
        for optimiser, rate in zip(self._optimisers, (self.config.lr, self.config.adam_lr), strict=True):
            for group in optimiser.param_groups:
                group["lr"] = rate * factor
            optimiser.zero_grad()
        hidden = order.shape[1] - self._visible
        loss = self._error(patches, order, decoded_patches(self.config, self.step, hidden))
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser in self._optimisers:
            optimiser.step()
        self.step += 1
        return loss.item()

    def run(self, *, every: int, report: Callable[[int, float, float], None]) -> None:
        """Train to the recipe's last step; every `every` steps measure, `report(step, loss, error)` and save."""
        total, counted = 0.0, 0
        steps = range(self.step, self.config.steps)
        with Prefetch(map(self.batch, steps), depth=1, name="training batches") as batches:
            for patches, order in batches:
                total, counted = total + self.train_step(patches, order), counted + 1
                if self.step % every == 0 or self.step == self.config.steps:
                    error = self.held_out_error()
                    self.save()
                    new = not self._local_curve.exists()
                    with self._local_curve.open("a", newline="") as file:
                        if new:
                            csv.writer(file).writerow(["step", "loss", "held_out_error"])
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
