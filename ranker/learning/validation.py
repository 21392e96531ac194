"""How well a ranker in training agrees with its teacher on images that it never learns from, and its temperature.

What is measured is read once and kept in memory, each worker its share; see `plan_validation` for what that is.

Shape suffixes: N images or views, L grid positions, V visible patches, P values of a patch (p * p * 3).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchsieve.pipeline.scoring.aggregate import Aggregate, dense_scores
from patchsieve.ranker.batches.index import TableIndex
from patchsieve.ranker.batches.rows import held_out_batches
from patchsieve.ranker.learning.agreement import Scores, spearman
from patchsieve.ranker.learning.temperature import fit_temperature
from patchsieve.ranker.learning.training import Training
from patchsieve.ranker.learning.validation_plan import ValidationKind, ValidationPlan, image_group

SCORED_AT_ONCE = 128
"""Images or views that are scored at once."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """`scores` of the ranker and `targets` of the teacher, float32 `[N, V]`, or `[N, L]` for whole images."""

    kind: ValidationKind
    aggregate: Aggregate
    scores: Scores
    targets: Scores

    @property
    def agreement(self) -> float | None:
        """Mean over images or views of Spearman's correlation; None where it is undefined for all of them."""
        found = spearman(self.scores, self.targets)
        return float(np.nanmean(found)) if np.isfinite(found).any() else None

    def temperature(self) -> float:
        """Of the softmax over the ranker's scores that comes nearest to the teacher's shares."""
        targets = torch.from_numpy(self.targets)
        if self.kind == "whole images" and self.aggregate == "log":
            targets = targets.double().exp()
        return fit_temperature([(torch.from_numpy(self.scores), targets)])


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Chunk:
    """`positions`: of the patches that are compared; None for whole images. `targets` as in `Measured`."""

    patches: Tensor
    positions: Tensor | None
    targets: Scores


class Validation:
    """The held-out images of one worker, in memory."""

    def __init__(
        self,
        plan: ValidationPlan,
        index: TableIndex,
        *,
        rank: int = 0,
        ranks: int = 1,
        decode_threads: int = 1,
    ) -> None:
        """Read them: slices in turn, of which only the held-out rows stay. Raises as `StoredRows` does."""
        self._plan = plan
        self._shape = index.grid**2 if plan.kind == "whole images" else index.visible
        if plan.kind == "whole images":
            self._chunks = _whole_images(plan, index, rank, ranks, decode_threads)
        else:
            self._chunks = [
                _Chunk(patches=batch.patches, positions=batch.positions, targets=batch.scores.numpy())
                for number in plan.slices[rank::ranks]
                for batch in held_out_batches(
                    index, int(number), batch_size=SCORED_AT_ONCE, decode_threads=decode_threads
                )
            ]

    def __len__(self) -> int:
        return sum(len(chunk.targets) for chunk in self._chunks)

    def measure(
        self, training: Training, gather: Callable[[Scores], Scores] = lambda values: values
    ) -> Measured:
        """Score them all. `gather` puts the arrays of all workers, `[n, V]` each, one behind the other."""
        empty = np.empty((0, self._shape), dtype=np.float32)
        scores = [training.predict(chunk.patches, chunk.positions).numpy() for chunk in self._chunks]
        targets = [chunk.targets for chunk in self._chunks]
        return Measured(
            kind=self._plan.kind,
            aggregate=self._plan.aggregate,
            scores=gather(np.concatenate([empty, *scores])),
            targets=gather(np.concatenate([empty, *targets])),
        )


class _Image:
    """An image that is put together from its views."""

    def __init__(self, positions: int, values: int) -> None:
        self.patches_LP = torch.zeros(positions, values, dtype=torch.uint8)
        self._seen_L = torch.zeros(positions, dtype=torch.bool)
        self._visible: list[NDArray[np.int64]] = []
        self._scores: list[Scores] = []

    def add(self, patches: Tensor, positions_V: Tensor, scores_V: Tensor) -> None:
        """One view: its visible patches, or the whole of it."""
        if len(patches) == len(self._seen_L):
            self.patches_LP = patches.clone()
        else:
            self.patches_LP[positions_V] = patches
        self._seen_L[positions_V] = True
        self._visible.append(positions_V.numpy())
        self._scores.append(scores_V.numpy())

    def dense(self, aggregate: Aggregate) -> Scores | None:
        """The teacher's score of every patch; None where one was never visible."""
        if not bool(self._seen_L.all()):
            return None
        return dense_scores(np.stack(self._visible), np.stack(self._scores), len(self._seen_L), aggregate)


def _whole_images(
    plan: ValidationPlan, index: TableIndex, rank: int, ranks: int, decode_threads: int
) -> list[_Chunk]:
    """Every worker reads all slices and keeps its images: the views of one image may lie in several slices."""
    images: dict[str, _Image] = {}
    for number in plan.slices:
        group = image_group(index.files[index.file_of[number]])
        for batch in held_out_batches(
            index, int(number), batch_size=SCORED_AT_ONCE, decode_threads=decode_threads
        ):
            for i, key in enumerate(batch.sample_keys):
                name = json.dumps([group, key])
                if _share_of(name, ranks) == rank:
                    if name not in images:
                        images[name] = _Image(index.grid**2, batch.patches.shape[2])
                    images[name].add(batch.patches[i], batch.positions[i], batch.scores[i])
    dense = ((image, image.dense(plan.aggregate)) for image in images.values())
    complete = [(image.patches_LP, targets) for image, targets in dense if targets is not None]
    del images
    chunks = []
    while complete:
        patches, targets = zip(*complete[:SCORED_AT_ONCE], strict=True)
        # As they are copied, so that memory holds one chunk twice, not all of them.
        del complete[:SCORED_AT_ONCE]
        chunks.append(_Chunk(patches=torch.stack(patches), positions=None, targets=np.stack(targets)))
    return chunks


def _share_of(name: str, ranks: int) -> int:
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "little") % ranks
