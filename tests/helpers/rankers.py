"""Small rankers with random weights, and the teacher that they say they learned from."""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any

import torch

from patchsieve.ranker.model.ranker import Ranker, RankerConfig

TINY_VIT = "vit_tiny_patch16_224"
SMALLEST_VIT = "test_vit"
TEACHER: dict[str, Any] = {"name": "small", "digest": "d" * 64, "grid": 4, "patch_size": 16, "heads": 4}


def small_config(**changes: Any) -> RankerConfig:
    """Two blocks of timm's smallest ViT over 4 x 4 patches."""
    return RankerConfig(**{"model": SMALLEST_VIT, "image_size": 64, "depth": 2, **changes})


def small_ranker(seed: int = 0, **changes: Any) -> Ranker:
    """A ranker with random weights, biases and norms too, the same for the same seed."""
    return copy.deepcopy(_built(small_config(**changes), seed))


@lru_cache(maxsize=8)
def _built(config: RankerConfig, seed: int) -> Ranker:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        ranker = Ranker(config)
        with torch.no_grad():
            for parameter in ranker.parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.05)
    return ranker.eval()


def random_patches(count: int, ranker: Ranker, seed: int = 0) -> torch.Tensor:
    """Noise as uint8 patches `[count, L, P]`."""
    shape = (count, ranker.config.positions, ranker.config.patch_values)
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
