"""Fits the probe's head: to whole train photos, and to squares of train scenes with an object and without one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from benchmarks._scene_arms import GRID, Arm, Scorer, kept, pieces, resized_grid, views
from benchmarks._scene_maker import PATCH, Maker, Photo
from benchmarks._scene_probe import NOTHING, SIDES, Head, Lite0, fit_head, photo_pictures, square_means

_CHUNK = 100
_EMPTY = 2
"""Squares without an object that are taken of a picture."""


def fitted_head(
    folder: Path,
    photos: Sequence[tuple[str, Photo]],
    make: Maker,
    scenes: int,
    probe: Lite0,
    scorer: Scorer,
    keep: float,
    say: Callable[[str], None],
) -> Head:
    """See the module; `photos`: with their classes. Of scenes it learns windows at this ratio that hold the object, and
    the smaller images of equal tokens; every fifth scene chooses the penalty. `folder` keeps the features.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts: list[tuple[NDArray[np.float16], Sequence[str], NDArray[np.bool_]]] = []
    for start in range(0, len(photos), _CHUNK):
        some = photos[start : start + _CHUNK]

        def of_photos(
            some: Sequence[tuple[str, Photo]] = some,
        ) -> tuple[list[NDArray[np.float16]], list[str]]:
            pictures = [picture for _, photo in some for picture in photo_pictures(photo)]
            rows = [squares[-1:] for squares in probe.squares(pictures)]
            return rows, [name for name, _ in some for _ in (0, 1)]

        features, labels = _kept(folder / f"photos-{start:05d}.npz", of_photos)
        parts.append((features, labels, np.zeros(len(labels), np.bool_)))
    say(f"head: {len(photos)} photos")
    for start in range(0, scenes, _CHUNK):
        numbers = range(start, min(start + _CHUNK, scenes))

        def of_scenes(numbers: range = numbers) -> tuple[list[NDArray[np.float16]], list[str]]:
            return _of_scenes(numbers, make, probe, scorer, keep)

        features, labels = _kept(folder / f"scenes-{start:05d}.npz", of_scenes)
        chosen_on = np.array([number % 5 == 0 for number in numbers for _ in range(2 * (1 + _EMPTY))])
        parts.append((features, labels, chosen_on))
        say(f"head: {numbers[-1] + 1} scenes")
    return fit_head(
        np.concatenate([one[0] for one in parts]),
        [label for one in parts for label in one[1]],
        np.concatenate([one[2] for one in parts]),
    )


def _of_scenes(
    numbers: range, make: Maker, probe: Lite0, scorer: Scorer, keep: float
) -> tuple[list[NDArray[np.float16]], list[str]]:
    rows, labels = [], []
    window = Arm(scores="near", shape="window", keep=keep, way="crop")
    small = Arm(scores="", shape="resized", keep=keep, way="crop")
    for number in numbers:
        scene = make(number)
        size = scene.pixels.shape[1]
        keep_L = kept(window, scorer("near", scene, number), size)
        block = size // GRID
        top, bottom, left, right = (block * place for place in pieces(keep_L)[0])
        side = resized_grid(keep, size) * PATCH
        alphas = [
            scene.alpha[top:bottom, left:right],
            interpolate(scene.alpha[None, None], size=(side, side), mode="area")[0, 0],
        ]
        pictures = [*views(window, scene, keep_L)[0], *views(small, scene, None)[0]]
        for squares, alpha in zip(probe.squares(pictures), alphas, strict=True):
            at = _object_and_empty(alpha, number)
            rows.append(squares[at])
            labels += [scene.label] + [NOTHING] * _EMPTY
    return rows, labels


def _object_and_empty(alpha: Tensor, number: int) -> list[int]:
    """The square that covers the object best (intersection over union), and those that hold least of it."""
    cells = interpolate(alpha[None, None], size=[side // 32 for side in alpha.shape], mode="area")
    mean_Q = square_means(cells)[0, :, 0]
    area_Q = _areas(*cells.shape[2:])
    inside_Q = mean_Q * area_Q
    union_Q = area_Q + cells.sum() - inside_Q
    best = int((inside_Q / union_Q).argmax())
    order = np.random.default_rng(number).permutation(len(mean_Q) - 1)
    empty = sorted(order.tolist(), key=lambda place: round(float(mean_Q[place]), 2))[:_EMPTY]
    return [best, *empty]


def _areas(height: int, width: int) -> Tensor:
    """Cells of each square, in the order of `square_means`."""
    areas = []
    for side in (one for one in SIDES if one <= min(height, width)):
        areas += [side**2] * ((height - side + 1) * (width - side + 1))
    return torch.tensor([*areas, height * width], dtype=torch.float32)


def _kept(
    path: Path, make: Callable[[], tuple[list[NDArray[np.float16]], list[str]]]
) -> tuple[NDArray[np.float16], list[str]]:
    if not path.exists():
        rows, labels = make()
        with path.with_suffix(".part").open("wb") as file:
            np.savez(file, features=np.concatenate(rows), labels=np.array(labels))
        path.with_suffix(".part").replace(path)
    with np.load(path) as stored:
        return stored["features"], stored["labels"].tolist()
