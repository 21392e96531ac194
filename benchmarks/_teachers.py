"""Teachers for benchmarks: random weights in shapes that people use, since speed and memory do not depend on them."""

from __future__ import annotations

from pathlib import Path

import torch

from patchsieve.pipeline.teacher.architecture import TeacherConfig
from patchsieve.pipeline.teacher.build import save_teacher
from patchsieve.pipeline.teacher.checkpoint import TeacherFile
from patchsieve.pipeline.teacher.model import MaskedAutoencoder

SIZES = {
    "tiny": TeacherConfig(
        width=192,
        depth=8,
        heads=3,
        decoder_width=128,
        decoder_depth=4,
        decoder_heads=4,
        output_space="pixels",
    ),
    "mae-base": TeacherConfig(output_space="pixels"),
    "mae-large": TeacherConfig(width=1024, depth=24, heads=16, output_space="pixels"),
    "mae-huge": TeacherConfig(patch_size=14, width=1280, depth=32, heads=16, output_space="pixels"),
    # Next to no work per view: what is measured with it is everything but the teacher.
    "toy": TeacherConfig(
        width=16,
        depth=1,
        heads=1,
        decoder_width=16,
        decoder_depth=1,
        decoder_heads=1,
        mlp_ratio=1.0,
        output_space="pixels",
    ),
}


def random_teacher(size: str) -> MaskedAutoencoder:
    """A frozen teacher of that size, the same in every process."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MaskedAutoencoder(SIZES[size])
    return model.eval().requires_grad_(False)


def save_random_teacher(size: str, folder: Path) -> tuple[str, TeacherFile]:
    """The same as a file in our format; its path, and what `read_teacher` will find there."""
    path = str(folder / f"{size}.safetensors")
    return path, save_teacher(random_teacher(size), path, name=f"random {size}")
