"""Losses that fit a ranker to the teacher's pseudo-scores.

All take `(scores [N, V], targets [N, V])`, the ranker's and the teacher's scores of V patches of N views, and
give a scalar. Targets carry no gradient. Arithmetic is in float32 whatever comes in (float64 stays float64), so
that half precision, ties, equal scores and magnitudes of 1e4 give finite and correct values; ListMLE is
summed in float64, because its gradient is a difference of large logarithms.

Reductions, tie rule and defaults are those of the published code (Luo et al., "Learning to Rank Patches for
Unbiased Image Redundancy Reduction", CVPR 2024), so that raw targets reproduce its losses.

Shape suffixes: N views, V patches of a view, K patches of a sub-list, R the remaining ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from patchsieve.pipeline.checks import at_least_one
from patchsieve.pipeline.errors import UserError

LossName = Literal["list_mle", "list_mle_sub", "list_net", "rank_net", "mse", "focused"]
Loss = Callable[[Tensor, Tensor], Tensor]

SUBLIST = 10
"""Patches in a random sub-list, about half of the 19 that a mask ratio of 0.9 leaves visible."""
THRESHOLD = 0.001
"""Published: targets that differ by less are a tie."""
SIGMA = 1.0
FOCUS = 10
"""Published: how many of the teacher's highest patches `focused` puts in order."""


def list_mle(
    scores_NV: Tensor,
    targets_NV: Tensor,
    *,
    sublist: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Negative log-likelihood of the targets' descending order under the Plackett-Luce model of the scores.

    Summed over the list, averaged over views, as published (Xia et al., "Listwise approach to learning to
    rank", ICML 2008). Reads only the order of the targets; equal targets are ordered by index.

    `sublist`: each view's loss is taken over that many of its patches, drawn without repetition from
    `generator` (torch's global one by default; on its own device, so that a CPU generator draws the same
    sub-lists for every device). As many as V or more mean the whole list.
    """
    _check_options(sublist=sublist)
    scores_NV, targets_NV = _prepared(scores_NV, targets_NV)
    views, patches = scores_NV.shape
    if sublist is not None and sublist < patches:
        device = generator.device if generator is not None else None
        noise_NV = torch.rand(views, patches, generator=generator, device=device)
        # Ascending, so that ties go by index here too.
        chosen_NK = noise_NV.argsort(dim=1)[:, :sublist].sort(dim=1).values.to(scores_NV.device)
        scores_NV, targets_NV = scores_NV.gather(1, chosen_NK), targets_NV.gather(1, chosen_NK)
    return _plackett_luce(scores_NV.gather(1, _descending(targets_NV)))


def list_net(scores_NV: Tensor, targets_NV: Tensor) -> Tensor:
    """Cross entropy of the scores' softmax against the targets' softmax, averaged over views and patches.

    The mean over patches, a factor of 1 / V, is the published reduction (Cao et al., "Learning to rank: from
    pairwise approach to listwise approach", ICML 2007).
    """
    scores_NV, targets_NV = _prepared(scores_NV, targets_NV)
    return -(targets_NV.softmax(1) * scores_NV.log_softmax(1)).mean()


def rank_net(
    scores_NV: Tensor, targets_NV: Tensor, *, threshold: float = THRESHOLD, sigma: float = SIGMA
) -> Tensor:
    """Half the mean, over views and all V * V ordered pairs, of the cross entropy of `sigma * (s_i - s_j)`.

    The wanted probability that i ranks above j is 1 or 0 where their targets differ by `threshold` or more,
    and one half for a tie (Burges et al., "Learning to rank using gradient descent", ICML 2005). A pair is
    met in both directions with equal terms, hence the half; a patch paired with itself adds a constant.
    """
    _check_options(threshold=threshold, sigma=sigma)
    scores_NV, targets_NV = _prepared(scores_NV, targets_NV)
    return _pairs(scores_NV, scores_NV, targets_NV, targets_NV, threshold, sigma)


def pointwise_mse(scores_NV: Tensor, targets_NV: Tensor) -> Tensor:
    """Squared difference of scores and targets, averaged over views and patches."""
    scores_NV, targets_NV = _prepared(scores_NV, targets_NV)
    return functional.mse_loss(scores_NV, targets_NV)


def focused(
    scores_NV: Tensor,
    targets_NV: Tensor,
    *,
    k: int = FOCUS,
    threshold: float = THRESHOLD,
    sigma: float = SIGMA,
) -> Tensor:
    """ListMLE of the k patches with the highest targets, plus RankNet of those k against all others.

    Both parts reduce as they do alone; the pairs are the k * (V - k) of one patch from either side.
    Equal targets are ordered by index. Raises `UserError` if k leaves no others.
    """
    _check_options(k=k, threshold=threshold, sigma=sigma)
    scores_NV, targets_NV = _prepared(scores_NV, targets_NV)
    if k >= scores_NV.shape[1]:
        raise UserError(
            f"k of the focused loss is {k}, must be below the {scores_NV.shape[1]} patches of a view"
        )
    order_NV = _descending(targets_NV)
    scores_NV, targets_NV = scores_NV.gather(1, order_NV), targets_NV.gather(1, order_NV)
    top_NK, rest_NR = scores_NV[:, :k], scores_NV[:, k:]
    pairs = _pairs(top_NK, rest_NR, targets_NV[:, :k], targets_NV[:, k:], threshold, sigma)
    return _plackett_luce(top_NK) + pairs


_LOSSES: dict[LossName, tuple[Callable[..., Tensor], tuple[str, ...]]] = {
    "list_mle": (list_mle, ()),
    "list_mle_sub": (partial(list_mle, sublist=SUBLIST), ("sublist", "generator")),
    "list_net": (list_net, ()),
    "rank_net": (rank_net, ("threshold", "sigma")),
    "mse": (pointwise_mse, ()),
    "focused": (focused, ("k", "threshold", "sigma")),
}


def loss_options(name: LossName) -> tuple[str, ...]:
    """The names of the options that `make_loss` takes for this loss."""
    if name not in _LOSSES:
        raise UserError(f"loss is {name!r}, must be one of {', '.join(get_args(LossName))}")
    return _LOSSES[name][1]


def make_loss(name: LossName, **options: Any) -> Loss:
    """The loss of that name as a function of scores and targets, its options checked and bound.

    `list_mle_sub` takes `sublist` (10 by default) and `generator`, `rank_net` `threshold` and `sigma`,
    `focused` `k`, `threshold` and `sigma`. Raises `UserError` for a name, option or value that has no meaning.
    """
    allowed = loss_options(name)
    unused = sorted(set(options) - set(allowed))
    if unused:
        takes = ", ".join(allowed) or "no options"
        raise UserError(f"loss {name} does not use {', '.join(unused)}; it takes {takes}")
    _check_options(**options)
    if name == "list_mle_sub" and options.get("sublist", SUBLIST) is None:
        raise UserError("sublist is not given, loss list_mle_sub needs it")
    return partial(_LOSSES[name][0], **options)


def _check_options(
    *,
    sublist: int | None = None,
    k: int = FOCUS,
    threshold: float = THRESHOLD,
    sigma: float = SIGMA,
    generator: torch.Generator | None = None,
) -> None:
    """Refuse values without a meaning; written so that NaN fails too."""
    if sublist is not None and sublist < 2:
        raise UserError(f"sublist is {sublist}, must be at least 2 patches, one alone has no order")
    at_least_one("k", k)
    if not 0 <= threshold < math.inf:
        raise UserError(f"threshold is {threshold}, must be a number of at least 0")
    if not 0 < sigma < math.inf:
        raise UserError(f"sigma is {sigma}, must be a number above 0")


def _prepared(scores_NV: Tensor, targets_NV: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float32, or float64 if they were; raises `ValueError` for shapes that do not fit."""
    if scores_NV.shape != targets_NV.shape or scores_NV.ndim != 2 or scores_NV.numel() == 0:
        shapes = f"{list(scores_NV.shape)} and {list(targets_NV.shape)}"
        raise ValueError(f"scores and targets must share one shape [N, V], and hold something: {shapes}")
    dtype = torch.promote_types(scores_NV.dtype, torch.float32)
    return scores_NV.to(dtype), targets_NV.detach().to(dtype)


def _descending(targets_NV: Tensor) -> Tensor:
    """Indices by falling target, int64 `[N, V]`; equal targets by index."""
    return targets_NV.argsort(dim=1, descending=True, stable=True)


def _plackett_luce(ranked_NV: Tensor) -> Tensor:
    """Negative log-likelihood that patches are drawn in this order, summed over the list, mean over views."""
    exact_NV = ranked_NV.double()
    remaining_NV = exact_NV.flip(1).logcumsumexp(1).flip(1)
    return (remaining_NV - exact_NV).sum(1).mean().to(ranked_NV.dtype)


def _pairs(
    scores_NK: Tensor,
    others_NR: Tensor,
    targets_NK: Tensor,
    other_targets_NR: Tensor,
    threshold: float,
    sigma: float,
) -> Tensor:
    """Half the mean of RankNet's cross entropy over all pairs of one patch from either side."""
    logits_NKR = sigma * (scores_NK[:, :, None] - others_NR[:, None, :])
    lead_NKR = targets_NK[:, :, None] - other_targets_NR[:, None, :]
    wanted_NKR = 0.5 * (1 + lead_NKR.sign() * (lead_NKR.abs() >= threshold))
    return functional.binary_cross_entropy_with_logits(logits_NKR, wanted_NKR) / 2
