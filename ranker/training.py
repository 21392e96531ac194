"""Fitting a ranker to stored pseudo-scores: optimiser, schedule, steps, temperature; knows no files and no Ray.

The recipe is the published one unless asked otherwise: AdamW, learning rate per 256 samples, linear warm-up and
cosine, decay on matrices only, no clipping ("Learning to Rank Patches for Unbiased Image Redundancy Reduction").
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.randomness import KeyedRandom
from patchsieve.ranker.losses import LossName, loss_options, make_loss
from patchsieve.ranker.optimiser import parameter_groups, rate_factor
from patchsieve.ranker.targets import TargetName, default_target, transform
from patchsieve.ranker.training_batch import Batch


class DivergedError(UserError):
    """A loss that is no number any more: another recipe is needed, another try does not help."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a ranker is fitted. `base_lr` is per 256 samples of a global batch; `clip` 0 clips nothing.

    `layer_decay`: factor on the learning rate from each block to the one before it, 1 for one rate everywhere.
    """

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
    layer_decay: float = 1.0


class Training:
    """One worker's share of a fit. `model` is `ranker`, or a parallel wrapper of it that averages gradients."""

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        *,
        ranker: nn.Module | None = None,
        device: torch.device,
        half: torch.dtype | None,
        full: bool,
        seed: int = 0,
        rank: int = 0,
    ) -> None:
        """`half`: dtype of autocast, None for float32. `full`: batches hold whole views (context `full`).

        `seed` and `rank` decide what is random in a step's loss.
        """
        self.model, self.ranker, self.recipe, self.step = model, ranker or model, recipe, 0
        self._device, self._half, self._full = device, half, full
        self._key = (seed, rank)
        # Not torch's own generator: a resumed step must draw what it would have drawn.
        self._random = torch.Generator(device)
        options = {"generator": self._random} if "generator" in loss_options(recipe.loss) else {}
        self._loss = make_loss(recipe.loss, **options)
        self._target = recipe.target or default_target(recipe.loss)
        self._lr = recipe.base_lr * recipe.batch_size / 256
        groups = parameter_groups(self.ranker, recipe.weight_decay, layer_decay=recipe.layer_decay)
        self._optimiser = torch.optim.AdamW(groups, lr=self._lr, betas=(0.9, recipe.beta2))
        # fp16 loses small gradients; a scaler that is off passes everything through.
        self._scaler = torch.amp.GradScaler(device.type, enabled=half is torch.float16)

    @property
    def learning_rate(self) -> float:
        """Of the last layer, at the step to come."""
        recipe = self.recipe
        return self._lr * rate_factor(self.step, warmup_steps=recipe.warmup_steps, steps=recipe.steps)

    def scores(self, batch: Batch) -> Tensor:
        """The ranker's scores of the visible patches, float32 `[N, V]`."""
        return self._scores(self.model, batch.patches, batch.positions)

    @torch.inference_mode()
    def predict(self, patches: Tensor, positions_NV: Tensor | None = None) -> Tensor:
        """Scores without gradients, float32 on the processor: `[N, V]` at these positions, else of all, `[N, L]`.

        `patches`: as batches of this training hold them; whole views `[N, L, P]` where no positions are given.
        """
        self.ranker.eval()
        found = self._scores(self.ranker, patches, positions_NV).float().cpu()
        self.ranker.train()
        return found

    def _scores(self, model: nn.Module, patches: Tensor, positions: Tensor | None) -> Tensor:
        patches = patches.to(self._device)
        at = None if positions is None else positions.to(self._device)
        with torch.autocast(self._device.type, self._half or torch.bfloat16, enabled=self._half is not None):
            if at is not None and not self._full:
                visible: Tensor = model(patches, at)
                return visible
            every: Tensor = model(patches)
        return every if at is None else every.gather(1, at)

    def train_step(self, batches: Iterable[Batch]) -> float:
        """One optimiser step over `accumulate` batches; returns their mean loss.

        Raises DivergedError for a loss that is not finite; the weights are those of the step before, then.
        """
        self._random.manual_seed(
            int(KeyedRandom(self._key[0], "", "loss", self._key[1], self.step).words(1)[0])
        )
        for group in self._optimiser.param_groups:
            group["lr"] = self.learning_rate * group["lr_scale"]
        self._optimiser.zero_grad()
        total = torch.zeros((), device=self._device)
        for number, batch in enumerate(batches, 1):
            last = number == self.recipe.accumulate
            # Gradients are averaged over workers once per step.
            with contextlib.nullcontext() if last else self._unsynchronised():
                targets = transform(batch.scores.to(self._device), self._target)
                loss = self._loss(self.scores(batch), targets) / self.recipe.accumulate
                self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        found = float(total)
        if not math.isfinite(found):
            raise DivergedError(
                f"training diverged: the loss is {found} at step {self.step + 1}; try a lower --base-lr, or --clip 1"
            )
        if self.recipe.clip > 0:
            self._scaler.unscale_(self._optimiser)
            nn.utils.clip_grad_norm_(self.ranker.parameters(), self.recipe.clip)
        self._scaler.step(self._optimiser)
        self._scaler.update()
        self.step += 1
        return found

    def _unsynchronised(self) -> contextlib.AbstractContextManager[None]:
        no_sync = getattr(self.model, "no_sync", contextlib.nullcontext)
        context: contextlib.AbstractContextManager[None] = no_sync()
        return context

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
