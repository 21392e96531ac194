"""The frozen estimator by the slow way: its definition in plain loops over removals, layers, heads and tokens.

Nothing is imported from the project but the slow reference of exact scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tests.pipeline.scoring.reference import Reference


class FrozenReference(Reference):
    """Estimates by the weights of a masked autoencoder; places are those of all tokens, 0 is the class token."""

    def frozen_scores(
        self, image: Tensor, visible: Sequence[int], starts: Sequence[float], count: int
    ) -> dict[str, list[float]]:
        """By metric, an estimate for each visible patch of a uint8 image `[3, S, S]`, from its number in [0, 1)."""
        first = self.decoder_input(image, list(visible))
        hidden = [place for place in range(1, len(first)) if place - 1 not in visible]
        kept, reach, anchor = self.anchor(first)
        result: dict[str, list[float]] = {"l1": [], "l2": []}
        for patch, start in zip(visible, starts, strict=True):
            removed = 1 + patch
            chances = probabilities([float(reach[t, removed]) for t in hidden], count)
            drawn = draw(chances, start)
            fresh = [0, *(1 + v for v in visible if v != patch), *(hidden[i] for i in drawn)]
            stale = [t for i, t in enumerate(hidden) if i not in drawn]
            changed = self.recompute(first, kept, fresh, stale)
            totals = dict.fromkeys(result, 0.0)
            for i in drawn:
                change = changed[hidden[i]] - anchor[hidden[i]]
                totals["l1"] += float(change.abs().mean()) / chances[i]
                totals["l2"] += float(change.square().mean()) / chances[i]
            for metric, total in totals.items():
                result[metric].append(total / len(hidden))
        return result

    def decoder_input(self, image: Tensor, visible: list[int]) -> Tensor:
        x = self.linear("decoder_embed", self.encode(image, visible))
        for place in range(len(x) - 1):
            if place not in visible:
                x[1 + place] = self.state["mask_token"][0, 0]
        return x + self.state["decoder_pos_embed"][0]

    @property
    def depth(self) -> int:
        return 1 + max(int(n.split(".")[1]) for n in self.state if n.startswith("decoder_blocks."))

    def anchor(self, x: Tensor) -> tuple[list[tuple[Tensor, Tensor]], Tensor, Tensor]:
        """Keys and values of each layer, the proxy `[1 + L, 1 + L]` of (token, removed one), predictions."""
        kept = []
        reach = torch.zeros(len(x), len(x), dtype=x.dtype)
        for layer in range(self.depth):
            name = f"decoder_blocks.{layer}"
            queries, keys, values = self.linear(f"{name}.attn.qkv", self.norm(f"{name}.norm1", x)).chunk(3, 1)
            kept.append((keys, values))
            mixed = []
            direct, mean_weight = torch.zeros_like(reach), torch.zeros_like(reach)
            for part in self.parts(x):
                weight = self.weights(queries[:, part], keys[:, part])
                mixed.append(weight @ values[:, part])
                mean_weight += weight / self.decoder_heads
                for removed in range(len(x)):
                    # The mix of the other tokens, at the weights that they have among themselves.
                    others = [t for t in range(len(x)) if t != removed]
                    alone = weight[:, others] / weight[:, others].sum(1, keepdim=True)
                    moved = (alone @ values[others, part] - mixed[-1]).norm(dim=1)
                    direct[:, removed] += moved / self.decoder_heads
            reach = reach + direct + 0.25 * mean_weight @ reach
            x = self.rest_of_block(name, x, torch.cat(mixed, 1))
        return kept, reach, self.prediction(x)

    def recompute(
        self, first: Tensor, kept: list[tuple[Tensor, Tensor]], fresh: list[int], stale: list[int]
    ) -> dict[int, Tensor]:
        """Predictions of the fresh tokens by place; they see each other and the stale ones as the anchor had them."""
        x = first[fresh]
        for layer, (old_keys, old_values) in enumerate(kept):
            name = f"decoder_blocks.{layer}"
            queries, keys, values = self.linear(f"{name}.attn.qkv", self.norm(f"{name}.norm1", x)).chunk(3, 1)
            keys, values = torch.cat([keys, old_keys[stale]]), torch.cat([values, old_values[stale]])
            mixed = []
            for part in self.parts(x):
                weight = self.weights(queries[:, part], keys[:, part])
                mixed.append(weight @ values[:, part])
            x = self.rest_of_block(name, x, torch.cat(mixed, 1))
        return dict(zip(fresh, self.prediction(x), strict=True))

    def weights(self, queries: Tensor, keys: Tensor) -> Tensor:
        return (queries @ keys.T / math.sqrt(queries.shape[1])).softmax(1)

    def parts(self, x: Tensor) -> list[slice]:
        width = x.shape[1] // self.decoder_heads
        return [slice(head * width, (head + 1) * width) for head in range(self.decoder_heads)]

    def rest_of_block(self, name: str, x: Tensor, mixed: Tensor) -> Tensor:
        x = x + self.linear(f"{name}.attn.proj", mixed)
        inner = self.linear(f"{name}.mlp.fc1", self.norm(f"{name}.norm2", x))
        return x + self.linear(f"{name}.mlp.fc2", 0.5 * inner * (1 + torch.erf(inner / math.sqrt(2))))

    def prediction(self, x: Tensor) -> Tensor:
        return self.linear("decoder_pred", self.norm("decoder_norm", x))


def probabilities(proxy: Sequence[float], count: int) -> list[float]:
    """min(1, c p) with a sum of `count`: the largest are made certain one by one until no other passes 1."""
    mean = sum(proxy) / len(proxy)
    worth = [p + 1e-3 * mean for p in proxy]
    certain: set[int] = set()
    while True:
        others = [i for i in range(len(worth)) if i not in certain]
        c = (count - len(certain)) / sum(worth[i] for i in others) if others else 0.0
        above = [i for i in others if c * worth[i] > 1]
        if not above:
            return [1.0 if i in certain else min(1.0, c * worth[i]) for i in range(len(worth))]
        certain.add(max(above, key=lambda i: worth[i]))


def draw(chances: Sequence[float], start: float) -> list[int]:
    """Systematic sampling: laid end to end, the largest first, those that a comb of spacing 1 meets."""
    drawn, end, tick = [], 0.0, start
    for i in sorted(range(len(chances)), key=lambda i: -chances[i]):
        end += chances[i]
        if tick < end:
            drawn.append(i)
            tick += 1
    return drawn
