"""Fitting a ranker to stored pseudo-scores: optimiser, schedule, steps, validation; knows no files and no Ray.

The recipe is the published one unless asked otherwise: AdamW, learning rate per 256 samples, linear warm-up and
cosine, decay on matrices only, no clipping ("Learning to Rank Patches for Unbiased Image Redundancy Reduction").
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from patchrank.ranker.losses import LossName, make_loss
from patchrank.ranker.metrics import spearman
from patchrank.ranker.targets import TargetName, default_target, transform
from patchrank.ranker.training_batch import Batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a ranker is fitted. `base_lr` is per 256 samples of a global batch; `clip` 0 clips nothing."""

    loss: LossName
    target: TargetName | None
    base_lr: float
    weight_decay: float
    beta2: float
    warmup_steps: int
    steps: int
    batch_size: int
    accumulate: int
    clip: float


def rate_factor(recipe: Recipe, step: int) -> float:
    """Factor on the learning rate at a step: linear warm-up, then half a cosine to 0."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    passed = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, passed)))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices with weight decay; biases, norms and tokens, which have one long axis, without."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    plain = [p for name, p in named if p.squeeze().ndim < 2]
    matrices = [p for name, p in named if p.squeeze().ndim >= 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


class Training:
    """One worker's share of a fit. `model` is a Ranker, or a parallel wrapper of one that averages gradients."""

    def __init__(
        self, model: nn.Module, recipe: Recipe, *, device: torch.device, half: torch.dtype | None, full: bool
    ) -> None:
        """`half`: dtype of autocast, None for float32. `full`: batches hold whole views (context `full`)."""
        self.model, self.recipe, self.step = model, recipe, 0
        self._device, self._half, self._full = device, half, full
        self._loss = make_loss(recipe.loss)
        self._target = recipe.target or default_target(recipe.loss)
        self._lr = recipe.base_lr * recipe.batch_size / 256
        groups = parameter_groups(model, recipe.weight_decay)
        self._optimiser = torch.optim.AdamW(groups, lr=self._lr, betas=(0.9, recipe.beta2))
        # fp16 loses small gradients; a scaler that is off passes everything through.
        self._scaler = torch.amp.GradScaler(device.type, enabled=half is torch.float16)

    def scores(self, batch: Batch) -> Tensor:
        """The ranker's scores of the visible patches, float32 `[N, V]`."""
        patches, positions = batch.patches.to(self._device), batch.positions.to(self._device)
        with torch.autocast(self._device.type, self._half or torch.bfloat16, enabled=self._half is not None):
            if not self._full:
                visible: Tensor = self.model(patches, positions)
                return visible
            every: Tensor = self.model(patches)
        return every.gather(1, positions)

    def train_step(self, batches: Iterable[Batch]) -> float:
        """One optimiser step over `accumulate` batches; returns their mean loss."""
        for group in self._optimiser.param_groups:
            group["lr"] = self._lr * rate_factor(self.recipe, self.step)
        self._optimiser.zero_grad()
        total = 0.0
        for batch in batches:
            targets = transform(batch.scores.to(self._device), self._target)
            loss = self._loss(self.scores(batch), targets) / self.recipe.accumulate
            self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        if self.recipe.clip > 0:
            self._scaler.unscale_(self._optimiser)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self._scaler.step(self._optimiser)
        self._scaler.update()
        self.step += 1
        return total

    @torch.inference_mode()
    def agreement(self, batches: Iterator[Batch]) -> tuple[float, int]:
        """Sum over views of Spearman's correlation with the teacher on the visible patches, and the number of views."""
        self.model.eval()
        total, count = 0.0, 0
        for batch in batches:
            found = spearman(self.scores(batch).cpu().numpy(), batch.scores.numpy())
            total += float(np.nansum(found))
            count += int(np.isfinite(found).sum())
        self.model.train()
        return total, count

    def state(self) -> dict[str, Any]:
        """Everything that a resumed fit needs but the weights, as `torch.save` writes it."""
        return {
            "step": self.step,
            "optimiser": self._optimiser.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a `state`; the weights are loaded by the caller."""
        self.step = int(state["step"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._scaler.load_state_dict(state["scaler"])


def fit_temperature(
    views: Iterable[tuple[Tensor, Tensor]], *, low: float = 1e-3, high: float = 1e3, rounds: int = 80
) -> float:
    """Temperature whose softmax over the ranker's scores comes nearest to the teacher's shares of a view.

    `views`: (ranker scores `[N, V]`, pseudo-scores `[N, V]`). Minimises the cross-entropy of softmax(scores / T) with
    pseudo-score / sum, by golden-section search on log T: it has one minimum in 1 / T, being convex there.
    """
    held = [(scores.double(), _shares(targets.double())) for scores, targets in views]

    def cost(log_temperature: float) -> float:
        scale = math.exp(-log_temperature)
        return float(sum(-(shares * (scores * scale).log_softmax(1)).sum(1).sum() for scores, shares in held))

    return math.exp(_golden_section(cost, math.log(low), math.log(high), rounds))


def _shares(scores_NV: Tensor) -> Tensor:
    shifted = scores_NV - scores_NV.amin(1, keepdim=True).clamp(max=0)
    return shifted / shifted.sum(1, keepdim=True).clamp(min=1e-30)


def _golden_section(cost: Callable[[float], float], low: float, high: float, rounds: int) -> float:
    ratio = (math.sqrt(5) - 1) / 2
    a, b = high - ratio * (high - low), low + ratio * (high - low)
    cost_a, cost_b = cost(a), cost(b)
    for _ in range(rounds):
        if cost_a <= cost_b:
            high, b, cost_b = b, a, cost_a
            a = high - ratio * (high - low)
            cost_a = cost(a)
        else:
            low, a, cost_a = a, b, cost_b
            b = low + ratio * (high - low)
            cost_b = cost(b)
    return (low + high) / 2
