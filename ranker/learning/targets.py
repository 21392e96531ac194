"""What the losses compare a ranker's scores with: the teacher's pseudo-scores, view by view."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from patchsieve.pipeline.errors import UserError
from patchsieve.ranker.learning.losses import LossName

TargetName = Literal["raw", "standardised", "log"]


def default_target(loss: LossName) -> TargetName:
    """The targets that a loss gets unless asked otherwise.

    ListMLE reads only their order. The others read their size: raw scores near 0.01 make ListNet's softmax
    uniform, and a tie threshold of 0.001 means something else for every teacher.
    """
    return "raw" if loss in ("list_mle", "list_mle_sub") else "standardised"


def transform(scores_NV: Tensor, how: TargetName) -> Tensor:
    """Targets of N views from their pseudo-scores, float32 `[N, V]`; no order changes but in ties of rounding.

    `raw`: as they are. `standardised`: mean 0 and (population) deviation 1 within each view; a view of equal
    scores gives zeros. `log`: natural logarithm of the score over the view's geometric mean; a score of 0
    counts as the smallest positive one of its view, and a view without any gives zeros. Raises `UserError`
    for an unknown name, and for `log` of negative scores, which the metric psnr gives.
    """
    if how not in get_args(TargetName):
        raise UserError(f"target is {how!r}, must be one of {', '.join(get_args(TargetName))}")
    if how == "raw":
        return scores_NV.float()
    # Scores of one view may differ in their last digits only, which a float32 mean would lose.
    exact_NV = scores_NV.double()
    if how == "log":
        lowest = exact_NV.min().item() if exact_NV.numel() else 0.0
        if lowest < 0:
            raise UserError(
                f"target log needs scores of at least 0, the table holds {lowest:g}; use standardised"
            )
        positive_NV = exact_NV.where(exact_NV > 0, torch.inf)
        # Infinity where a view has no positive score: its values are equal then, and give zeros below.
        exact_NV = exact_NV.maximum(positive_NV.amin(1, keepdim=True)).log()
    centred_NV = exact_NV - exact_NV.mean(1, keepdim=True)
    equal_N1 = exact_NV.amin(1, keepdim=True) == exact_NV.amax(1, keepdim=True)
    if how == "standardised":
        centred_NV = centred_NV / exact_NV.std(1, correction=0, keepdim=True).where(~equal_N1, 1.0)
    return centred_NV.where(~equal_N1, 0.0).float()
