"""Which held-out rows a training is measured on, and how: whole images where tables show all of them.

Views of one fixed crop are dealt as partitions of the grid: ceil(L / V) consecutive views show every patch. Where a
table holds a partition, the ranker's scores of a whole image are compared with the image's dense scores; elsewhere only
those of the patches that a view shows. The two numbers must not be compared with each other.

Shape suffixes: L grid positions, V visible patches of a view, P values of a patch, S slices of the tables.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from patchsieve.pipeline.randomness import KeyedRandom
from patchsieve.pipeline.scoring.aggregate import Aggregate
from patchsieve.pipeline.tables.reader import TableFile
from patchsieve.ranker.batches.index import TableIndex

ValidationKind = Literal["whole images", "visible patches"]

VALIDATION_BYTES = 256 * 2**20
"""Pixels of held-out images that all workers together keep in memory; others are not measured."""

_VIEW_FIELDS = ("first_view", "views")
_NOT_SCORES = {*_VIEW_FIELDS, "store", "precision", "sample", "decoder"}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ValidationPlan:
    """`slices`: those of the index whose held-out rows are measured, int64 `[S]`; `rows` they have.

    `aggregate`: from the scores of views to dense ones, for whole images.
    """

    kind: ValidationKind
    slices: NDArray[np.int64]
    rows: int
    aggregate: Aggregate


def row_settings(files: Sequence[TableFile]) -> dict[str, Any]:
    """The settings that decided the rows of some tables, by name (see `RowConfig`).

    `views` as ranges, "0:4" for views 0 to 3. A setting in which tables differ is a list of all its values.
    """
    found: dict[str, list[Any]] = {}
    for text in sorted({file.settings for file in files}):
        settings = json.loads(text)
        first, count = (settings.pop(name) for name in _VIEW_FIELDS)
        for name, value in {**settings, "views": f"{first}:{first + count}"}.items():
            if value not in found.setdefault(name, []):
                found[name].append(value)
    return {name: values[0] if len(values) == 1 else values for name, values in found.items()}


def image_group(file: TableFile) -> str:
    """What the tables have in common whose views of one image add up to its dense scores."""
    settings = json.loads(file.settings)
    return json.dumps([file.sha256, {name: settings[name] for name in sorted(settings.keys() - _NOT_SCORES)}])


def plan_validation(index: TableIndex, *, limit: int = VALIDATION_BYTES) -> ValidationPlan:
    """Choose the held-out rows that are measured, by index and seed alone, up to `limit` bytes of pixels."""
    partition = -(-(index.grid**2) // index.visible)
    groups: dict[str, list[int]] = {}
    for number, file in enumerate(index.files):
        groups.setdefault(image_group(file), []).append(number)
    whole: list[tuple[list[int], int]] = []
    for numbers in groups.values():
        files = [index.files[number] for number in numbers]
        slices = _slices_of(index, numbers)
        if _holds_partition(files, partition) and index.held_out_rows[slices].any():
            whole.append((slices, sum(file.last_view - file.first_view for file in files)))
    patch_bytes = index.patch_size**2 * 3
    if whole:
        units = [slices for slices, _ in whole]
        row_bytes = [index.grid**2 * patch_bytes / views for _, views in whole]
    else:
        units = [[number] for number in range(len(index.held_out_rows))]
        positions = index.grid**2 if index.context == "full" else index.visible
        row_bytes = [float(positions * patch_bytes)] * len(units)
    chosen: list[int] = []
    left = float(limit)
    for unit in KeyedRandom(index.seed, "", "validation").permutation(len(units)).tolist():
        for number in units[unit]:
            rows = int(index.held_out_rows[number])
            if rows and left > 0:
                chosen.append(number)
                left -= rows * row_bytes[unit]
    taken = np.array(sorted(chosen), dtype=np.int64)
    metrics = {json.loads(index.files[index.file_of[number]].settings)["metric"] for number in taken}
    return ValidationPlan(
        kind="whole images" if whole else "visible patches",
        slices=taken,
        rows=int(index.held_out_rows[taken].sum()),
        # Negative decibels have no logarithm.
        aggregate="mean" if "psnr" in metrics else "log",
    )


def _holds_partition(files: Sequence[TableFile], partition: int) -> bool:
    """Whether tables of the same images hold all views of one partition of the grid."""
    if json.loads(files[0].settings)["crop"] != "center":
        return False
    views = {view for file in files for view in range(file.first_view, file.last_view)}
    return any(views >= set(range(first, first + partition)) for first in views if first % partition == 0)


def _slices_of(index: TableIndex, files: Sequence[int]) -> list[int]:
    """The slices of some files in the order of their images: files of other views advance together."""
    placed: list[tuple[float, int]] = []
    for file in files:
        numbers = np.flatnonzero(index.file_of == file)
        rows = index.train_rows[numbers] + index.held_out_rows[numbers]
        shares = (np.cumsum(rows) - rows) / max(1, int(rows.sum()))
        placed += zip(shares.tolist(), numbers.tolist(), strict=True)
    return [number for _, number in sorted(placed)]
