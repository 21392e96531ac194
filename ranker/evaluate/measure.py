"""How well a ranker learned its teacher: agreement with the dense scores, beside their ceiling and the baselines.

Agreement shows that the distillation worked, not that pruned data keep their value.

Shape suffixes: I images, L grid positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.scoring.api import Teacher
from patchsieve.ranker.baselines.baselines import BASELINES, FROM_TEACHER, BaselineSources, make_baseline
from patchsieve.ranker.baselines.fits import FITS
from patchsieve.ranker.evaluate.dense import DenseTeacher
from patchsieve.ranker.evaluate.reconstruction import ReconstructionCurve, reconstruction_curves
from patchsieve.ranker.learning.agreement import (
    Interval,
    Scores,
    bootstrap,
    ceiling,
    kendall_tau,
    mean_interval,
    paired_difference,
    spearman,
    spearman_brown,
    topk_overlap,
)
from patchsieve.ranker.model.checkpoint import LoadedRanker
from patchsieve.ranker.select.selection import keep_count

RANKER = "ranker"
TOP_SHARES = (0.1, 0.25, 0.5)
"""Shares of the patches whose overlap is measured."""
_FITTED = ("position", "ridge")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Agreement:
    """Of one set of scores with another: means over images and their bootstrap intervals.

    `per_image`: Spearman's correlation, float64 `[I]`; `of_ceiling`: its mean over the ceiling, whose own uncertainty
    is in the interval; `overlap`: of the highest patches, by TOP_SHARES; `ranker_ahead`: the ranker's Spearman less
    this one, paired by image, None for the ranker itself.
    """

    per_image: NDArray[np.float64]
    spearman: Interval
    of_ceiling: Interval
    tau: Interval
    overlap: tuple[Interval, ...]
    ranker_ahead: Interval | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """What was measured of one ranker.

    `agreement`: of the ranker first and then of each baseline, with the dense scores; `halves`: of one half of the
    partitions with the other. `rho`: reliability of the dense scores, `ceiling`: its square root. `reconstruction`:
    a diagnostic (see `reconstruction_check`), None where it was not asked for or cannot be had. `notes`: what was
    left out, and what to keep in mind.
    """

    ranker: LoadedRanker
    dense: DenseTeacher
    rho: Interval
    ceiling: Interval
    agreement: Mapping[str, Agreement]
    halves: Agreement
    reconstruction: Mapping[str, ReconstructionCurve] | None
    notes: tuple[str, ...]


def evaluate_ranker(
    ranker: LoadedRanker,
    dense: DenseTeacher,
    *,
    teacher: Teacher | None = None,
    baselines: Sequence[str] | None = None,
    reconstruct: bool = True,
    seed: int = 1,
    batch_size: int = 32,
    extra_notes: Sequence[str] = (),
) -> Evaluation:
    """Measure a ranker on images with dense scores; one DenseTeacher serves many rankers.

    `teacher`: for baselines `FROM_TEACHER` and the reconstruction, which are left out without it. `baselines`: names
    of the registry, None for all that can be had. `extra_notes` come before the notes found here. Raises UserError
    where the dense scores are of another teacher than the ranker's, ValueError where they are of another grid.
    """
    check_teacher(ranker, dense.teacher)
    names = tuple(BASELINES if baselines is None else baselines)
    usable, notes = _usable(names, ranker, teacher)
    scores = {
        RANKER: ranker_scores(ranker, dense.patches, batch_size=batch_size),
        **baseline_scores(dense, usable, ranker, teacher, seed=seed),
    }
    half_I = dense.half_agreement
    curves = None
    if reconstruct and teacher is not None and teacher.file.config.output_space == "unknown":
        notes.append(
            "reconstruction is left out: the teacher does not tell what it predicts (--output-space does)"
        )
    elif reconstruct and teacher is not None:
        kept = {**scores, "teacher's top": dense.dense, "teacher's bottom": -dense.dense}
        curves = reconstruction_curves(
            teacher, dense.patches, kept, ranker=RANKER, batch_size=batch_size, seed=seed
        )
    return Evaluation(
        ranker=ranker,
        dense=dense,
        rho=bootstrap([half_I], spearman_brown, seed=seed),
        ceiling=bootstrap([half_I], lambda half: ceiling(spearman_brown(half)), seed=seed),
        agreement=agreements(scores, dense, seed=seed),
        halves=_agreement(dense.halves[0], dense.halves[1], half_I, seed),
        reconstruction=curves,
        notes=(*extra_notes, *notes),
    )


def check_teacher(ranker: LoadedRanker, teacher: Mapping[str, str]) -> None:
    """Raise UserError unless this (name and digest) is the teacher that the ranker learned from."""
    if ranker.teacher["digest"] != teacher["digest"]:
        raise UserError(
            f"{ranker.name} learned from teacher {ranker.teacher['name']} ({ranker.teacher['digest'][:16]}), not from "
            f"{teacher['name']} ({teacher['digest'][:16]}): measure it against its own"
        )


def agreements(scores: Mapping[str, Scores], dense: DenseTeacher, *, seed: int = 1) -> dict[str, Agreement]:
    """Agreement of each set of scores (`[I, L]` by name, RANKER among them) with the dense scores."""
    found = {
        name: _agreement(scores_IL, dense.dense, dense.half_agreement, seed)
        for name, scores_IL in scores.items()
    }
    mine_I = found[RANKER].per_image
    return {
        name: agreement
        if name == RANKER
        else dataclasses.replace(
            agreement, ranker_ahead=paired_difference(mine_I, agreement.per_image, seed=seed)
        )
        for name, agreement in found.items()
    }


def _agreement(scores_IL: Scores, dense_IL: Scores, half_I: NDArray[np.float64], seed: int) -> Agreement:
    per_image = spearman(scores_IL, dense_IL)
    return Agreement(
        per_image=per_image,
        spearman=mean_interval(per_image, seed=seed),
        of_ceiling=bootstrap(
            [per_image, half_I], lambda mine, half: mine / ceiling(spearman_brown(half)), seed=seed
        ),
        tau=mean_interval(kendall_tau(scores_IL, dense_IL), seed=seed),
        overlap=tuple(
            mean_interval(topk_overlap(scores_IL, dense_IL, keep_count(dense_IL.shape[1], share)), seed=seed)
            for share in TOP_SHARES
        ),
    )


@torch.inference_mode()
def ranker_scores(ranker: LoadedRanker, patches_ILP: Tensor, *, batch_size: int = 32) -> Scores:
    """The ranker's scores of whole images (uint8 patches), float32 `[I, L]`."""
    parts = torch.split(patches_ILP, batch_size)
    return np.concatenate(
        [ranker.model.forward_image(part.to(ranker.device)).cpu().numpy() for part in parts]
    )


def baseline_scores(
    dense: DenseTeacher,
    names: Sequence[str],
    ranker: LoadedRanker,
    teacher: Teacher | None = None,
    *,
    seed: int = 1,
) -> dict[str, Scores]:
    """Scores of baselines by name, float32 `[I, L]`; `ranker` holds the fits, `teacher` is for those `FROM_TEACHER`."""
    sources = BaselineSources(
        grid=ranker.config.grid,
        patch_size=ranker.config.patch_size,
        seed=seed,
        fits=ranker.extra.get(FITS) or {},
        teacher=teacher.model if teacher else None,
    )
    found = {}
    for name in names:
        baseline = make_baseline(name, sources)
        pairs = zip(dense.patches, dense.keys, strict=True)
        found[name] = np.stack([baseline(patches, key) for patches, key in pairs])
    return found


def _usable(
    names: Sequence[str], ranker: LoadedRanker, teacher: Teacher | None
) -> tuple[list[str], list[str]]:
    """The baselines that can be had, and why others cannot."""
    notes = []
    unfitted = [name for name in names if name in _FITTED and name not in (ranker.extra.get(FITS) or {})]
    if unfitted:
        notes.append(
            f"baselines {' and '.join(unfitted)} are left out: {ranker.name} holds no fits of them; train it again "
            "to have them stored"
        )
    untaught = [name for name in names if name in FROM_TEACHER and teacher is None]
    if untaught:
        notes.append(f"baselines without the teacher that they need are left out: {', '.join(untaught)}")
    return [name for name in names if name not in {*unfitted, *untaught}], notes
