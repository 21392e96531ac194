"""Small random teachers, views for them, and what the slow reference says."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from patchsieve.pipeline.images.masks import draw_visible
from patchsieve.pipeline.images.patches import patchify
from patchsieve.pipeline.row_config import Removal
from patchsieve.pipeline.teacher.architecture import TeacherConfig
from patchsieve.pipeline.teacher.model import MaskedAutoencoder
from tests.helpers.photos import photo_pixels
from tests.pipeline.scoring.reference import Reference

SMALL = TeacherConfig(
    image_size=28,
    patch_size=4,
    width=32,
    depth=2,
    heads=4,
    decoder_width=24,
    decoder_depth=2,
    decoder_heads=3,
    output_space="pixels",
)
RATIO = 0.85  # 7 of the 49 patches of SMALL stay visible
REMOVALS: list[Removal] = ["decoder", "encoder"]


@functools.cache
def make_teacher(config: TeacherConfig = SMALL, kind: type[MaskedAutoencoder] = MaskedAutoencoder) -> Any:
    """Random weights, wide enough that every bias and norm matters and that patches influence each other.

    One for all who ask: copy it to change it.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            parameter.add_(noise, alpha=0.2)
        else:
            parameter.copy_(noise * (1.2 / parameter[0].numel() ** 0.5 if parameter.ndim != 3 else 0.5))
    return model


def make_views(config: TeacherConfig, count: int, visible: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images, their patches and visible positions."""
    size = config.image_size
    images = torch.stack([torch.from_numpy(photo_pixels(seed, size, size)) for seed in range(count)])
    images = images.permute(0, 3, 1, 2).contiguous()
    masks = [
        draw_visible(0, f"{i}", 0, grid=config.grid, count=visible, masks="uniform", partition=False)
        for i in range(count)
    ]
    return (
        images,
        patchify(images, config.patch_size),
        torch.stack([torch.from_numpy(mask) for mask in masks]),
    )


def reference_scores(
    model: MaskedAutoencoder, images: Tensor, visible: Tensor, *, removal: str, metric: str
) -> Tensor:
    config = model.config
    reference = Reference(
        model.state_dict(),
        patch_size=config.patch_size,
        heads=config.heads,
        decoder_heads=config.decoder_heads,
        norm_eps=config.norm_eps,
        output_space=config.output_space,
    )
    rows = [
        reference.scores(image, row.tolist(), removal=removal, metric=metric)
        for image, row in zip(images, visible, strict=True)
    ]
    return torch.tensor(rows)
