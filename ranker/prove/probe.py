"""The linear classifier: multinomial logistic regression on frozen features, fitted to its end.

It minimises the mean cross-entropy plus half the penalty times the squared weights, over features that are standardised
by the images it is fitted to; the bias is not penalised. Convex: there is one solution, wherever L-BFGS starts.

Shape suffixes: N images, D features, C classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

PENALTIES = (1.0, 0.1, 0.01, 0.001, 0.0001)
"""Tried on the validation split, the strongest first; of equally good ones that is taken."""

PATIENCE = 2
"""The search ends after so many penalties that were no better than a stronger one."""

_STEPS, _HISTORY, _GRADIENT, _CHANGE = 300, 20, 1e-5, 1e-9


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Probe:
    """A fitted classifier; all float64. `weights` `[C, D]` and `bias` `[C]` of features less `mean`, over `scale`."""

    weights: NDArray[np.float64]
    bias: NDArray[np.float64]
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]

    def predict(self, features_ND: NDArray[np.float32]) -> NDArray[np.int64]:
        """The class of each image, int64 `[N]`; of equal ones the first."""
        logits_NC = ((features_ND - self.mean) / self.scale) @ self.weights.T + self.bias
        found_N: NDArray[np.int64] = logits_NC.argmax(axis=1)
        return found_N


@dataclasses.dataclass(frozen=True)
class Penalty:
    """A penalty, and the accuracy that it gave on the images that it was chosen on."""

    value: float
    accuracy: float


def fit_probe(
    features_ND: NDArray[np.float32],
    labels_N: NDArray[np.int64],
    classes: int,
    penalty: float,
    *,
    start: Probe | None = None,
) -> Probe:
    """The classifier of these images; `start`: one that lies near it, zeros by default.

    Raises ValueError for a penalty that is not above 0.
    """
    if not penalty > 0:
        raise ValueError(f"a penalty of {penalty} is not above 0")
    exact_ND = features_ND.astype(np.float64)
    mean, scale = exact_ND.mean(axis=0), exact_ND.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    x_ND, y_N = torch.from_numpy((exact_ND - mean) / scale), torch.from_numpy(labels_N)
    weights = np.zeros((classes, x_ND.shape[1])) if start is None else start.weights
    bias = np.zeros(classes) if start is None else start.bias
    weights_CD, bias_C = (torch.tensor(values, requires_grad=True) for values in (weights, bias))
    solver = torch.optim.LBFGS(
        [weights_CD, bias_C],
        max_iter=_STEPS,
        history_size=_HISTORY,
        tolerance_grad=_GRADIENT,
        tolerance_change=_CHANGE,
        line_search_fn="strong_wolfe",
    )

    def loss() -> float:
        with torch.enable_grad():
            solver.zero_grad()
            total = cross_entropy(x_ND @ weights_CD.T + bias_C, y_N)
            total = total + penalty / 2 * weights_CD.square().sum()
            total.backward()  # type: ignore[no-untyped-call]
        return float(total.detach())

    solver.step(loss)  # type: ignore[no-untyped-call]
    return Probe(weights=weights_CD.detach().numpy(), bias=bias_C.detach().numpy(), mean=mean, scale=scale)


def choose_penalty(
    features_ND: NDArray[np.float32],
    labels_N: NDArray[np.int64],
    *,
    fitted_N: NDArray[np.bool_],
    chosen_on_N: NDArray[np.bool_],
    classes: int,
    penalties: Sequence[float] = PENALTIES,
) -> tuple[Penalty, Probe]:
    """The penalty whose classifier of the images `fitted` is right most often on those `chosen_on`; both bool `[N]`.

    And that classifier, from which one of all images is near.
    """
    probe: Probe | None = None
    tried: list[tuple[Penalty, Probe]] = []
    for value in penalties:
        probe = fit_probe(features_ND[fitted_N], labels_N[fitted_N], classes, value, start=probe)
        right_N = probe.predict(features_ND[chosen_on_N]) == labels_N[chosen_on_N]
        tried.append((Penalty(value, float(right_N.mean())), probe))
        best = max(range(len(tried)), key=lambda place: tried[place][0].accuracy)
        if len(tried) - 1 - best == PATIENCE:
            break
    return tried[best]
