"""Fitting a ranker to stored pseudo-scores: recipe, optimiser, schedule, steps; knows no files and no Ray.

The recipe is the published one unless asked otherwise: AdamW, learning rate per 256 samples, linear warm-up and
cosine, decay on matrices only, no clipping ("Learning to Rank Patches for Unbiased Image Redundancy Reduction").
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.randomness import KeyedRandom
from patchsieve.ranker.batches.batch import Batch
from patchsieve.ranker.learning.losses import LossName, loss_options, make_loss
from patchsieve.ranker.learning.targets import TargetName, default_target, transform


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
        return self._lr * cosine_factor(self.step, warmup_steps=recipe.warmup_steps, steps=recipe.steps)

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
        patches = self._upload(patches)
        at = None if positions is None else self._upload(positions)
        with torch.autocast(self._device.type, self._half or torch.bfloat16, enabled=self._half is not None):
            if at is not None and not self._full:
                visible: Tensor = model(patches, at)
                return visible
            every: Tensor = model(patches)
        return every if at is None else every.gather(1, at)

    def _upload(self, values: Tensor) -> Tensor:
        """The values where the model is; out of pinned memory without waiting for them."""
        return values.to(self._device, non_blocking=True)

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
                targets = transform(self._upload(batch.scores), self._target)
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
        """Go on from a `state` in main memory; the weights are loaded by the caller.

        What belongs on a GPU goes there; AdamW's counts of steps stay, as every step reads them.
        """
        self.step = int(state["step"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._scaler.load_state_dict(state["scaler"])


_BLOCK = re.compile(r"\bbackbone\.blocks\.(\d+)\.")
_BEFORE_BLOCKS = re.compile(r"\bbackbone\.(patch_embed|cls_token|reg_token|norm_pre)\b")


def cosine_factor(step: int, *, warmup_steps: int, steps: int) -> float:
    """Factor on the learning rate at a step: linear warm-up, then half a cosine to 0."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    passed = (step - warmup_steps) / max(1, steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, passed)))


def layer_of(name: str, depth: int) -> int:
    """Layer of a ranker's parameter: 0 for what comes before its `depth` blocks, depth + 1 for norm and head."""
    if _BEFORE_BLOCKS.search(name):
        return 0
    block = _BLOCK.search(name)
    return int(block[1]) + 1 if block else depth + 1


def parameter_groups(
    ranker: nn.Module, weight_decay: float, *, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Matrices with weight decay; biases, norms and tokens, which have one long axis, without.

    `layer_decay`: the learning rate of a layer is that of the next one times this; the factor is in `lr_scale`. Groups
    come in the order of layers, last first, matrices before the others.
    """
    named = [(name, p) for name, p in ranker.named_parameters() if p.requires_grad]
    depth = 1 + max((int(found[1]) for name, _ in named if (found := _BLOCK.search(name))), default=-1)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in named:
        below = 0 if layer_decay == 1.0 else depth + 1 - layer_of(name, depth)
        plain = parameter.squeeze().ndim < 2
        group = {"params": [], "weight_decay": 0.0 if plain else weight_decay, "lr_scale": layer_decay**below}
        groups.setdefault((below, plain), group)["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]
