"""The linear classifier: multinomial logistic regression on frozen features, fitted to its end.

It minimises the mean cross-entropy plus half the penalty times the squared weights, over features that are standardised
by the images it is fitted to; the bias is not penalised. Convex: there is one solution. L-BFGS stops as near to it as
predictions can tell, so that neither rounding nor the number of threads decides.

Shape suffixes: N images, D features, C classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

PENALTIES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001)
"""Tried on the validation split, the strongest first."""

_STEPS, _HISTORY, _GRADIENT = 10_000, 20, 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Probe:
    """A fitted classifier; all float64. `weights` `[C, D]` and `bias` `[C]` of features less `mean`, over `scale`.

    A class that it was fitted to no image of has a bias of minus infinity: it is never the answer.
    """

    weights: NDArray[np.float64]
    bias: NDArray[np.float64]
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]

    def logits(self, features_ND: NDArray[np.floating]) -> NDArray[np.float64]:
        """Of each image and class, float64 `[N, C]`."""
        logits_NC: NDArray[np.float64] = ((features_ND - self.mean) / self.scale) @ self.weights.T + self.bias
        return logits_NC

    def shares(self, features_ND: NDArray[np.floating]) -> NDArray[np.float64]:
        """The softmax over classes, float64 `[N, C]`."""
        logits_NC = self.logits(features_ND)
        shares_NC: NDArray[np.float64] = np.exp(logits_NC - logits_NC.max(axis=1, keepdims=True))
        shares_NC /= shares_NC.sum(axis=1, keepdims=True)
        return shares_NC

    def predict(self, features_ND: NDArray[np.floating]) -> NDArray[np.int64]:
        """The class of each image, int64 `[N]`; of equal ones the first."""
        found_N: NDArray[np.int64] = self.logits(features_ND).argmax(axis=1)
        return found_N


@dataclasses.dataclass(frozen=True)
class Penalty:
    """A penalty, and how its classifier did on the images that it was chosen on.

    `accuracy`: share of them that are right; `brier`: their mean Brier score, the squared distance from the shares of
    the classes to 1 for the right one and 0 for the others.
    """

    value: float
    accuracy: float
    brier: float


def fit_probe(
    features_ND: NDArray[np.float32], labels_N: NDArray[np.int64], classes: int, penalty: float
) -> Probe:
    """The classifier of these images; raises ValueError for a penalty that is not above 0."""
    if not penalty > 0:
        raise ValueError(f"a penalty of {penalty} is not above 0")
    exact_ND = features_ND.astype(np.float64)
    mean, scale = exact_ND.mean(axis=0), exact_ND.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    present, y_N = np.unique(labels_N, return_inverse=True)
    found_CD, found_C = _solve(torch.from_numpy((exact_ND - mean) / scale), torch.from_numpy(y_N), penalty)
    weights, bias = np.zeros((classes, features_ND.shape[1])), np.full(classes, -np.inf)
    weights[present], bias[present] = found_CD.numpy(), found_C.numpy()
    return Probe(weights=weights, bias=bias, mean=mean, scale=scale)


def _solve(x_ND: Tensor, y_N: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Weights `[C, D]` and bias `[C]` of the classes that have images.

    L-BFGS works on variables of about equal curvature, or weak penalties take it thousands of steps: along the
    principal axes of the features, over the root of a bound on the Hessian there, a class's share of the images times
    the variance along the axis.
    """
    variance_D, axes_DD = torch.linalg.eigh(x_ND.T @ x_ND / len(x_ND))
    z_ND = x_ND @ axes_DD
    share_C1 = (y_N.bincount() / len(y_N)).double()[:, None]
    unit_CD = (share_C1 * variance_D.clamp_min(0) + penalty).rsqrt()
    unit_C = share_C1[:, 0].rsqrt()
    u_CD, u_C = (torch.zeros_like(unit).requires_grad_() for unit in (unit_CD, unit_C))
    solver = torch.optim.LBFGS(
        [u_CD, u_C],
        max_iter=_STEPS,
        history_size=_HISTORY,
        tolerance_grad=_GRADIENT,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def loss() -> float:
        with torch.enable_grad():
            solver.zero_grad()
            weights_CD = u_CD * unit_CD
            total = cross_entropy(z_ND @ weights_CD.T + u_C * unit_C, y_N)
            total = total + penalty / 2 * weights_CD.square().sum()
            total.backward()
        return float(total.detach())

    solver.step(loss)  # type: ignore[no-untyped-call]
    return (u_CD.detach() * unit_CD) @ axes_DD.T, u_C.detach() * unit_C


def choose_penalty(
    features_ND: NDArray[np.float32],
    labels_N: NDArray[np.int64],
    *,
    fitted_N: NDArray[np.bool_],
    chosen_on_N: NDArray[np.bool_],
    classes: int,
    penalties: Sequence[float] = PENALTIES,
) -> tuple[Penalty, Probe]:
    """The penalty whose classifier of the images `fitted` has the least Brier score on those `chosen_on`.

    Both bool `[N]`; and that classifier. Accuracy would let a single image choose; the score is smooth, and falls until
    it rises: penalties are weakened, in the order given, until it does.
    """
    best: tuple[Penalty, Probe] | None = None
    seen_ND, wanted_N = features_ND[chosen_on_N], labels_N[chosen_on_N]
    for value in penalties:
        probe = fit_probe(features_ND[fitted_N], labels_N[fitted_N], classes, value)
        shares_NC = probe.shares(seen_ND)
        brier = float(((shares_NC - np.eye(classes)[wanted_N]) ** 2).sum(axis=1).mean())
        if best is not None and brier >= best[0].brier:
            break
        accuracy = float((shares_NC.argmax(axis=1) == wanted_N).mean())
        best = Penalty(value, accuracy, brier), probe
    assert best is not None, "there are penalties"
    return best
