"""Baselines that are fitted to a table: the mean teacher score of each position, and a ridge regression.

Both read visible patches of the images to train on, as a training's first pass shows them, and keep sums alone. What
they give is plain JSON, which training stores with the ranker.

Shape suffixes: N views, V visible patches of a view, L grid positions, F pixel features, C columns (L + F).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.images.patches import take_patches
from patchsieve.ranker.baselines.features import FEATURES, pixel_features
from patchsieve.ranker.batches.batch import Batch
from patchsieve.ranker.learning.targets import TargetName, transform

FITS = "baselines"
"""Name of the fits in what `save_ranker` takes as `extra`."""

FITTED_ROWS = 50_000
"""Views that are fitted to, about: a position is then seen thousands of times."""

PENALTY = 10.0
"""Of the ridge: a position seen this many times is drawn half the way to the mean."""

CHUNK_ROWS = 128
"""Views whose columns are in memory at a time."""


class BaselineFits:
    """Sums the targets of each position, and the normal equations of targets on position one-hots and pixel features.

    Only differences within an image matter to an order, so the regression's columns and targets are centred within each
    view. A feature is penalised as if its deviation within views were 1, whatever its unit.
    """

    def __init__(
        self, *, grid: int, patch_size: int, target: TargetName = "standardised", penalty: float = PENALTY
    ) -> None:
        """`target`: standardised, so that images with large scores do not drown the others; `raw` makes `position` the
        plain mean of scores. Raises ValueError for a penalty that is not above 0: centred one-hots alone have no unique
        solution.
        """
        if not penalty > 0:
            raise ValueError(f"a penalty of {penalty} is not above 0")
        self._grid, self._patch_size, self._target, self._penalty = grid, patch_size, target, penalty
        self._positions = grid * grid
        columns = self._positions + len(FEATURES)
        self._sums: dict[str, NDArray[np.float64]] = {
            "rows": np.zeros(1),
            "target": np.zeros(self._positions),
            "count": np.zeros(self._positions),
            "products": np.zeros((columns, columns)),
            "answers": np.zeros(columns),
        }

    def add(self, batch: Batch) -> None:
        """Count the visible patches of some views, unless FITTED_ROWS were counted."""
        if self._sums["rows"][0] >= FITTED_ROWS:
            return
        target_NV = transform(batch.scores, self._target).double().numpy()
        place = batch.positions.numpy().reshape(-1)
        self._sums["rows"] += len(batch)
        self._sums["target"] += np.bincount(place, target_NV.reshape(-1), self._positions)
        self._sums["count"] += np.bincount(place, minlength=self._positions)
        for start in range(0, len(batch), CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            self._add_products(batch.patches[rows], batch.positions[rows], target_NV[rows])

    def _add_products(self, patches: Tensor, positions_NV: Tensor, target_NV: NDArray[np.float64]) -> None:
        whole = patches.shape[1] != positions_NV.shape[1]
        features = pixel_features(take_patches(patches, positions_NV) if whole else patches).numpy()
        one_hot = np.eye(self._positions)[positions_NV.numpy()]
        columns_NVC = np.concatenate([one_hot, features], axis=2)
        columns_NVC -= columns_NVC.mean(axis=1, keepdims=True)
        columns = columns_NVC.reshape(-1, columns_NVC.shape[2])
        target = target_NV - target_NV.mean(axis=1, keepdims=True)
        self._sums["products"] += columns.T @ columns
        self._sums["answers"] += columns.T @ target.reshape(-1)

    def result(self) -> dict[str, Any]:
        """The fits `position` and `ridge` to the views counted so far, as JSON."""
        about = {
            "grid": self._grid,
            "patch_size": self._patch_size,
            "target": self._target,
            "rows": int(self._sums["rows"][0]),
        }
        return {"position": {**about, **self._position()}, "ridge": {**about, **self._ridge()}}

    def _position(self) -> dict[str, Any]:
        """The mean by position; positions never seen get the mean of all patches."""
        total, count = self._sums["target"], self._sums["count"]
        overall = total.sum() / max(count.sum(), 1)
        return {"position": np.where(count > 0, total / np.maximum(count, 1), overall).tolist()}

    def _ridge(self) -> dict[str, Any]:
        """The weight of each position and of each feature, in the features' own units."""
        answers, products = self._sums["answers"], self._sums["products"]
        scale = np.ones(len(answers))
        spread = np.sqrt(np.diagonal(products)[self._positions :] / max(self._sums["count"].sum(), 1))
        scale[self._positions :] = np.where(spread > 0, spread, 1)
        scaled = products / np.outer(scale, scale) + self._penalty * np.eye(len(scale))
        solved = np.linalg.solve(scaled, answers / scale) / scale
        weights = solved[self._positions :].tolist()
        return {
            "penalty": self._penalty,
            "position": solved[: self._positions].tolist(),
            "features": dict(zip(FEATURES, weights, strict=True)),
        }

    def state(self) -> dict[str, Tensor]:
        """The sums, as `torch.save` writes them."""
        return {name: torch.from_numpy(values.copy()) for name, values in self._sums.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a `state`."""
        self._sums = {name: state[name].numpy().copy() for name in self._sums}


def fitted_values(
    fit: Mapping[str, Any], *, grid: int, patch_size: int
) -> tuple[NDArray[np.float64], torch.Tensor]:
    """The weights of the positions `[L]` and of the pixel features `[F]`, zeros for a fit without.

    Raises UserError for a fit that is damaged, or of another grid.
    """
    try:
        if (fit["grid"], fit["patch_size"]) != (grid, patch_size):
            raise UserError(
                f"a baseline was fitted to {fit['grid']} x {fit['grid']} patches of {fit['patch_size']} px, "
                f"these images have {grid} x {grid} of {patch_size} px"
            )
        position = [float(value) for value in fit["position"]]
        given = fit.get("features", dict.fromkeys(FEATURES, 0.0))
        features = [float(given[name]) for name in FEATURES]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"a baseline's fit is not complete: {error!r}") from None
    if len(position) != grid * grid or not all(map(math.isfinite, [*position, *features])):
        raise UserError(f"a baseline's fit does not hold a finite number for each of {grid * grid} positions")
    return np.array(position), torch.tensor(features, dtype=torch.float64)
