"""A small teacher, images in memory, and a ranker that says it learned from that teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from patchsieve.pipeline.scoring.api import Teacher, load_teacher
from patchsieve.ranker.baselines.features import FEATURES
from patchsieve.ranker.baselines.fits import FITS
from patchsieve.ranker.evaluate.dense import DenseMethod, DenseTeacher
from patchsieve.ranker.evaluate.images import EvaluationImages
from patchsieve.ranker.model.api import center_patches
from patchsieve.ranker.model.checkpoint import LoadedRanker, load_ranker, save_ranker
from patchsieve.ranker.model.ranker import Ranker
from tests.helpers.photos import photo_pixels
from tests.helpers.rankers import small_ranker
from tests.helpers.score_runs import save_small_teacher
from tests.helpers.teachers import SMALL

# 6 x 6 patches of 8 px; 9 visible at this ratio, so that 4 views make a partition.
RATIO = 0.75
VIEWS = 4


def small_teacher(folder: Path, **changes: Any) -> Teacher:
    """A teacher of random weights on the processor."""
    return load_teacher(save_small_teacher(folder, **changes), device="cpu", precision="fp32")


def model_for_teacher(**changes: Any) -> Ranker:
    """Two blocks of a small ViT over the teacher's grid."""
    return small_ranker(image_size=SMALL.image_size, patch_size=SMALL.patch_size, **changes)


def ranker_of(
    folder: Path, teacher: Teacher, *, ranker: Ranker | None = None, tables: Any = ("t",), **extra: Any
) -> LoadedRanker:
    """A ranker saved in a folder and loaded from it; `extra` is what training would store with it."""
    model = ranker or model_for_teacher()
    about: dict[str, Any] = {"name": teacher.file.name, "digest": teacher.file.digest}
    about |= {"grid": model.config.grid, "patch_size": model.config.patch_size}
    save_ranker(str(folder), model, teacher=about, tables=tables, temperature=1.0, extra=extra)
    return load_ranker(str(folder), device="cpu")


def made_up_fits(grid: int = SMALL.grid, patch_size: int = SMALL.patch_size) -> dict[str, Any]:
    """Fits of the baselines: later positions first, and every feature alike."""
    about = {"grid": grid, "patch_size": patch_size, "position": list(range(grid * grid))}
    return {FITS: {"position": about, "ridge": {**about, "features": dict.fromkeys(FEATURES, 1.0)}}}


def evaluation_images(count: int, ranker: LoadedRanker) -> EvaluationImages:
    """Centre crops of synthetic photos."""
    photos = [torch.from_numpy(photo_pixels(seed, 60, 70)).permute(2, 0, 1) for seed in range(count)]
    return EvaluationImages(
        keys=tuple(f"photo-{number}" for number in range(count)),
        contents=("0" * 64,) * count,
        patches=torch.stack([center_patches(photo, ranker.config) for photo in photos]),
        shards=1,
        unreadable=0,
    )


def noisy_dense(
    truth_IL: NDArray[np.float64], noise: float, teacher: Teacher, *, patches: torch.Tensor | None = None
) -> DenseTeacher:
    """Dense scores that are the truth and noise of this deviation; either half has as much noise twice over."""
    random = np.random.default_rng(1)
    halves = np.stack([truth_IL + noise * 2**0.5 * random.normal(size=truth_IL.shape) for _ in range(2)])
    return DenseTeacher(
        keys=tuple(f"image-{number}" for number in range(len(truth_IL))),
        patches=torch.zeros(*truth_IL.shape, 192, dtype=torch.uint8) if patches is None else patches,
        dense=halves.mean(axis=0).astype(np.float32),
        halves=halves.astype(np.float32),
        teacher={"name": teacher.file.name, "digest": teacher.file.digest},
        how=DenseMethod(
            source="scored",
            masks="spread",
            aggregate="log",
            partitions=2,
            views=2 * VIEWS,
            mask_ratio=RATIO,
            removal="decoder",
            metric="l1",
            precision="fp32",
            seed=1,
        ),
    )
