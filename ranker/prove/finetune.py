"""Fine-tuning: the whole transformer learns from what an arm leaves, every arm from the same start, by one recipe.

Shape suffixes: N images, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import cross_entropy

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.randomness import KeyedRandom
from patchsieve.ranker.learning.training import cosine_factor, parameter_groups
from patchsieve.ranker.prove.config import Recipe
from patchsieve.ranker.prove.tokens import TokenClassifier, Tokens, by_count

FORWARD_AND_BACKWARD = 3
"""Operations of a training step over those of its forward pass: gradients of inputs and of weights cost one each."""

_PREDICTED = 64


def fine_tune(
    model: TokenClassifier,
    tokens: Sequence[Tokens],
    labels_N: NDArray[np.int64],
    recipe: Recipe,
    *,
    seed: int,
) -> float:
    """Train the model where it is, and say how many operations that took; `seed`: of the order of images.

    Every step takes a batch of images; those of equally many tokens go through the model together, so that none is
    padded. Raises UserError where the loss is no number any more.
    """
    device = model.head.weight.device
    labels = torch.from_numpy(labels_N).to(device)
    groups = parameter_groups(model, recipe.weight_decay)
    optimiser = torch.optim.AdamW(groups, lr=recipe.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: cosine_factor(step, warmup_steps=recipe.warmup_steps, steps=recipe.steps)
    )
    batches, passed = _batches(len(tokens), recipe.batch_size, seed), 0.0
    model.train()
    for step in range(recipe.steps):
        rows, total = next(batches), 0.0
        for group in by_count(tokens, rows, recipe.batch_size):
            wanted = labels[torch.tensor(group, device=device)]
            loss = cross_entropy(model.logits(tokens, group), wanted, reduction="sum") / len(rows)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
            passed += len(group) * model.flops(len(tokens[group[0]].patches))
        if not math.isfinite(total):
            raise UserError(f"training diverged: the loss is {total} at step {step + 1}; try a lower --lr")
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
    return FORWARD_AND_BACKWARD * passed


@torch.inference_mode()
def predict(model: TokenClassifier, tokens: Sequence[Tokens]) -> NDArray[np.int64]:
    """The class of each image, int64 `[N]`."""
    model.eval()
    found_N = np.empty(len(tokens), np.int64)
    for group in by_count(tokens, range(len(tokens)), _PREDICTED):
        found_N[group] = model.logits(tokens, group).argmax(dim=1).cpu().numpy()
    return found_N


def _batches(count: int, size: int, seed: int) -> Iterator[list[int]]:
    """Batches of places among so many, full ones for ever: one random order after the other."""
    waiting: list[int] = []
    epoch = 0
    while True:
        while len(waiting) < size:
            waiting += KeyedRandom(seed, "", "prove order", epoch).permutation(count).tolist()
            epoch += 1
        yield waiting[:size]
        waiting = waiting[size:]
