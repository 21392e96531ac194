"""Groups of parameters and the learning rate of each step."""

from __future__ import annotations

import math
import re
from typing import Any

from torch import nn

_BLOCK = re.compile(r"\bbackbone\.blocks\.(\d+)\.")
_BEFORE_BLOCKS = re.compile(r"\bbackbone\.(patch_embed|cls_token|reg_token|norm_pre)\b")


def rate_factor(step: int, *, warmup_steps: int, steps: int) -> float:
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
