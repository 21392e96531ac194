"""Baselines that are fitted to a table: the mean teacher score of each position, and a ridge regression.

Both read the visible patches of the images to train on, once, and keep sums alone. What they give is plain JSON, which
training stores with the ranker.

Shape suffixes: N views, V visible patches of a view, L grid positions, F pixel features, C columns (L + F).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from patchsieve.pipeline.errors import UserError
from patchsieve.ranker.baselines.features import FEATURES, pixel_features
from patchsieve.ranker.batches.batch import Batch
from patchsieve.ranker.batches.index import TableIndex
from patchsieve.ranker.batches.rows import StoredRows
from patchsieve.ranker.learning.targets import TargetName, transform

FITS = "baselines"
"""Name of the fits in what `save_ranker` takes as `extra`."""

PENALTY = 10.0
"""Of the ridge: a position seen this many times is drawn half the way to the mean."""

CHUNK_ROWS = 128
"""Views whose columns are in memory at a time."""


class PositionFit:
    """Sums the targets of each position."""

    def __init__(self, grid: int) -> None:
        self._sum = np.zeros(grid * grid)
        self._count = np.zeros(grid * grid)

    def add(self, batch: Batch, target_NV: NDArray[np.float64]) -> None:
        """Count the visible patches of some views."""
        place = batch.positions.numpy().reshape(-1)
        self._sum += np.bincount(place, target_NV.reshape(-1), len(self._sum))
        self._count += np.bincount(place, minlength=len(self._sum))

    def result(self) -> dict[str, Any]:
        """The mean by position; positions never seen get the mean of all patches."""
        overall = self._sum.sum() / max(self._count.sum(), 1)
        mean = np.where(self._count > 0, self._sum / np.maximum(self._count, 1), overall)
        return {"position": mean.tolist()}


class RidgeFit:
    """Sums the normal equations of targets on position one-hots and pixel features.

    Only differences within an image matter to an order, so columns and targets are centred within each view. A
    feature is penalised as if its deviation within views were 1, whatever its unit.
    """

    def __init__(self, grid: int, *, penalty: float = PENALTY) -> None:
        """Raises ValueError for a penalty that is not above 0: centred one-hots alone have no unique solution."""
        if not penalty > 0:
            raise ValueError(f"a penalty of {penalty} is not above 0")
        columns = grid * grid + len(FEATURES)
        self._positions, self._penalty = grid * grid, penalty
        self._products = np.zeros((columns, columns))
        self._answers = np.zeros(columns)
        self._patches = 0

    def add(self, batch: Batch, target_NV: NDArray[np.float64]) -> None:
        """Count the visible patches of some views."""
        for start in range(0, len(batch), CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            one_hot = np.eye(self._positions)[batch.positions[rows].numpy()]
            columns_NVC = np.concatenate([one_hot, pixel_features(batch.patches[rows]).numpy()], axis=2)
            columns_NVC -= columns_NVC.mean(axis=1, keepdims=True)
            target = target_NV[rows] - target_NV[rows].mean(axis=1, keepdims=True)
            columns = columns_NVC.reshape(-1, columns_NVC.shape[2])
            self._products += columns.T @ columns
            self._answers += columns.T @ target.reshape(-1)
            self._patches += target.size

    def result(self) -> dict[str, Any]:
        """The weight of each position and of each feature, in the features' own units."""
        scale = np.ones(len(self._answers))
        spread = np.sqrt(np.diagonal(self._products)[self._positions :] / max(self._patches, 1))
        scale[self._positions :] = np.where(spread > 0, spread, 1)
        products = self._products / np.outer(scale, scale)
        solved = np.linalg.solve(products + self._penalty * np.eye(len(scale)), self._answers / scale) / scale
        weights = solved[self._positions :].tolist()
        return {
            "penalty": self._penalty,
            "position": solved[: self._positions].tolist(),
            "features": dict(zip(FEATURES, weights, strict=True)),
        }


def fit_baselines(
    index: TableIndex, *, target: TargetName = "standardised", penalty: float = PENALTY
) -> dict[str, Any]:
    """The fits `position` and `ridge` to the rows of the images that are not held out, as JSON.

    `target`: standardised, so that images with large scores do not drown the others; `raw` makes `position` the plain
    mean of scores. Tables are read once; a row group and the columns of `CHUNK_ROWS` views are in memory. Raises
    UserError where there is no row to fit, or a table is damaged.
    """
    rows = int(index.train_rows.sum())
    if not rows:
        raise UserError("no rows to fit the baselines to: every image of the tables is held out")
    fits = fit_batches(training_rows(index), grid=index.grid, target=target, penalty=penalty)
    about = {"grid": index.grid, "patch_size": index.patch_size, "target": target, "rows": rows}
    return {name: {**about, **fit} for name, fit in fits.items()}


def fit_batches(
    batches: Iterable[Batch], *, grid: int, target: TargetName = "standardised", penalty: float = PENALTY
) -> dict[str, dict[str, Any]]:
    """Both fits to batches of visible patches (`patches` `[N, V, P]`), in one pass over them."""
    position, ridge = PositionFit(grid), RidgeFit(grid, penalty=penalty)
    for batch in batches:
        target_NV = transform(batch.scores, target).double().numpy()
        position.add(batch, target_NV)
        ridge.add(batch, target_NV)
    return {"position": position.result(), "ridge": ridge.result()}


def training_rows(index: TableIndex) -> Iterator[Batch]:
    """The visible patches of every row to train on, once, in the order of the tables."""
    index = dataclasses.replace(index, context="visible")
    with ThreadPoolExecutor(1, thread_name_prefix="decode views") as pool:
        for group in np.flatnonzero(index.train_rows):
            stored = StoredRows(index, int(group), held_out=False)
            for start in range(0, len(stored), CHUNK_ROWS):
                yield stored.take(np.arange(start, min(start + CHUNK_ROWS, len(stored))), pool)
            # Else this group would stay while the next one is read.
            del stored


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
