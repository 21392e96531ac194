"""Rows of score tables scored again from the pixels that are stored beside them.

Shape suffixes: N rows, V visible patches, L grid positions, P values of a patch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchsieve.pipeline.checks import typed
from patchsieve.pipeline.compute.device import device_name
from patchsieve.pipeline.errors import ContentError, UserError
from patchsieve.pipeline.images.patches import patchify
from patchsieve.pipeline.images.views import decode_view
from patchsieve.pipeline.output.records import RecordFooter
from patchsieve.pipeline.randomness import KeyedRandom
from patchsieve.pipeline.row_config import Precision, RowConfig
from patchsieve.pipeline.scoring.changes import compares_whole_images
from patchsieve.pipeline.scoring.frozen import draw_starts
from patchsieve.pipeline.scoring.scorer import Scorer
from patchsieve.pipeline.tables.reader import table_batches
from patchsieve.pipeline.teacher.build import build_teacher
from patchsieve.pipeline.teacher.checkpoint import TeacherFile, read_teacher

TOLERANCE: dict[Precision, float] = {"fp32": 2e-5, "bf16": 8 * 2.0**-8, "fp16": 8 * 2.0**-11}
"""How far a score may lie from the one in the table, as a share of the row's largest: of fp32 what tests allow between
batch sizes, of the others eight roundings, calculated."""

MOST_BATCH = 1024
MOST_THREADS = 256
_BATCH_ROWS = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoredAgain:
    """What came of the rows of one table: `rows` that are right, `equal` of them bit for bit; `problem` of the first
    that is not; `untold`: why none was scored.
    """

    rows: int = 0
    equal: int = 0
    problem: str = ""
    untold: str = ""


class RowCheck:
    """Scores rows again with the teacher of an output, in the precision, batch and threads of their tables."""

    def __init__(self, teacher: str, share: float) -> None:
        """`teacher`: its name, path or URL."""
        self._spec, self._share = teacher, share
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._files: dict[str, TeacherFile] = {}
        self._scorers: dict[str, Scorer] = {}

    def check(self, footer: RecordFooter) -> ScoredAgain:
        """Some rows of one sound table. Raises UserError where the teacher is another one or cannot be had."""
        rows = typed(RowConfig, footer.metadata["config"])
        made = footer.metadata["provenance"]
        untold = self._why_not(rows, made.get("device"))
        if untold or not footer.rows:
            return ScoredAgain(untold=untold)
        scorer = self._scorer(footer.metadata["teacher"], rows, made)
        threads = torch.get_num_threads()
        torch.set_num_threads(_bounded(made.get("threads"), MOST_THREADS) or threads)
        try:
            return self._compare(footer, rows, scorer)
        finally:
            torch.set_num_threads(threads)

    def _why_not(self, rows: RowConfig, device: object) -> str:
        if rows.store == "none":
            return "its rows were not scored again: no pixels are stored"
        if rows.store == "patches" and compares_whole_images(rows.metric):
            return f"its rows were not scored again: {rows.metric} takes whole views, and patches are stored"
        here = device_name(self._device)
        if device is not None and device != here:
            return f"its rows were not scored again: they were scored on {device}, and this is {here}"
        return ""

    def _scorer(self, told: dict[str, Any], rows: RowConfig, made: dict[str, Any]) -> Scorer:
        batch_size = _bounded(made.get("batch_size"), MOST_BATCH) or _BATCH_ROWS
        key = f"{told['digest']} {told['output_space']} {rows} {batch_size}"
        if key not in self._scorers:
            space = told["output_space"]
            if space not in self._files:
                self._files[space] = read_teacher(
                    self._spec, output_space=None if space == "unknown" else space
                )
            file = self._files[space]
            if file.digest != told["digest"]:
                raise UserError(
                    f"{self._spec} is not the teacher of these rows, which is {told['name']} of digest "
                    f"{str(told['digest'])[:12]}...: say where that lies by --teacher"
                )
            self._scorers[key] = Scorer.for_rows(
                build_teacher(file), rows, device=self._device, batch_size=batch_size
            )
        return self._scorers[key]

    def _compare(self, footer: RecordFooter, rows: RowConfig, scorer: Scorer) -> ScoredAgain:
        right = equal = 0
        for first, batch in self._chosen(footer, rows):
            visible_NV = np.array([row["visible"] for row in batch], dtype=np.int16)
            if visible_NV.min() < 0 or visible_NV.max() >= (rows.size // scorer.patch_size) ** 2:
                return ScoredAgain(rows=right, equal=equal, problem=f"row {first}: patches beyond the grid")
            try:
                pixels = torch.stack([_pixels(row, rows, scorer.patch_size) for row in batch])
            except ContentError as error:
                return ScoredAgain(rows=right, equal=equal, problem=f"row {first}: its stored view: {error}")
            keys = [(row["sample_key"], row["view"]) for row in batch]
            starts = draw_starts(rows, keys, visible_NV.shape[1])
            again_NV = scorer.score(pixels, torch.from_numpy(visible_NV).long(), starts).numpy()
            told_NV = np.array([row["score"] for row in batch], dtype=np.float32)
            apart_N = np.abs(again_NV - told_NV).max(axis=1)
            bound_N = TOLERANCE[rows.precision] * np.abs(told_NV).max(axis=1)
            # Written so that what is not finite fails.
            wrong = np.flatnonzero(~(apart_N <= bound_N))
            if len(wrong):
                key, view = keys[wrong[0]]
                reason = f"view {view} of {key}: scored again, a score lies {apart_N[wrong[0]]:.3g} from the one stored"
                return ScoredAgain(rows=right, equal=equal, problem=reason)
            right += len(batch)
            equal += int((again_NV == told_NV).all(axis=1).sum())
        return ScoredAgain(rows=right, equal=equal)

    def _chosen(self, footer: RecordFooter, rows: RowConfig) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """The rows to score again, in lists, each with the number of its first."""
        draws = KeyedRandom(0, footer.metadata["shard"]["sha256"], "verify").uniform(footer.rows)
        chosen = draws <= max(self._share, draws.min())
        columns = ["sample_key", "view", "visible", "score", "pixels" if rows.store == "view" else "patches"]
        at = 0
        for batch in table_batches(footer.url, columns, batch_rows=_BATCH_ROWS):
            places = np.flatnonzero(chosen[at : at + len(batch)])
            if len(places):
                yield at + int(places[0]), batch.take(places).to_pylist()
            at += len(batch)


def _pixels(row: dict[str, Any], rows: RowConfig, patch_size: int) -> Tensor:
    """What the teacher saw of a row: uint8 `[V, P]`, or `[L, P]` for metrics of whole images."""
    visible = len(row["visible"])
    if rows.store == "patches":
        return torch.frombuffer(bytearray(row["patches"]), dtype=torch.uint8).reshape(visible, -1)
    view = decode_view(row["pixels"])
    if view.shape != (3, rows.size, rows.size):
        raise ContentError(f"{view.shape[2]} x {view.shape[1]} pixels instead of {rows.size} x {rows.size}")
    patches_LP = patchify(view[None], patch_size)[0]
    return patches_LP if compares_whole_images(rows.metric) else patches_LP[torch.tensor(row["visible"])]


def _bounded(value: object, most: int) -> int | None:
    """A count that a file tells, None for what cannot be one."""
    return value if type(value) is int and 1 <= value <= most else None
