"""Which whole images stay in a pruned dataset, by the teacher's scores in their tables. Experimental.

An image's score is the mean over its views of the mean of a view's pseudo-scores; the highest stay, and so do images
without one. Pseudo-scores of one teacher and one way of scoring are comparable across images; a ranker's are not.

Shape suffixes: R rows of a table, V visible patches of a view, I images.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from patchsieve.pipeline import storage
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.shards.specs import Shard
from patchsieve.pipeline.storage import scratch_folder
from patchsieve.pipeline.tables.reader import table_batches
from patchsieve.pipeline.threads import map_threads
from patchsieve.ranker.select.image_tables import ImageTables, ScoredShard
from patchsieve.ranker.select.selection import keep_count

_ROWS, _SHARDS, _COUNTED = 8192, 256, 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardChoice:
    """The decision on one shard: images with a score in `scores` (by sample key) below `threshold` go.

    `sha256`: content that was scored, "" where no table is of this shard.
    """

    scores: Mapping[str, float]
    threshold: float
    sha256: str

    @property
    def reason(self) -> str:
        """Why images go: one text for all, so that an index can be counted by it."""
        return f"its image score is below {self.threshold:.6g}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageChoice:
    """How images are chosen: the share `keep` that stays, None with --min-score; `threshold`, None until planned."""

    tables: ImageTables
    keep: float | None
    threshold: float | None

    @property
    def asked(self) -> dict[str, Any]:
        """What the threshold depends on, by name: the tables' rows, and the share or the threshold itself."""
        wanted = {"image_min_score": self.threshold} if self.keep is None else {"image_keep": self.keep}
        return {"image_tables": list(self.tables.identities), **wanted}

    @property
    def fields(self) -> dict[str, Any]:
        """What can change which images stay, by name."""
        return {**self.asked, "image_threshold": self.threshold}

    def of(self, shard: Shard) -> ShardChoice:
        """Read the scores of one shard, some bytes for each of its images; errors as `image_scores`."""
        assert self.threshold is not None, "the images were not planned"
        scored = self.tables.of.get(shard.id)
        if scored is None:
            return ShardChoice(scores={}, threshold=self.threshold, sha256="")
        keys, scores_I = image_scores(scored)
        return ShardChoice(
            scores=dict(zip(keys, scores_I.tolist(), strict=True)),
            threshold=self.threshold,
            sha256=scored.sha256,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImagePlan:
    """The decision on a dataset: of `scored` images those with at least `threshold` stay, `kept` of them.

    `without`: shards that no table is of, whose images all stay.
    """

    threshold: float
    scored: int
    kept: int
    without: int


def image_scores(shard: ScoredShard) -> tuple[list[str], NDArray[np.float64]]:
    """Sample keys and scores, float64 `[I]`, of a shard's images.

    Reads keys and scores of its tables, a row group at a time. Raises UserError for a table that is gone, damaged, or
    holds a score that is not finite.
    """
    keys: list[pa.Array] = []
    means: list[NDArray[np.float64]] = []
    for url in shard.urls:
        try:
            for batch in table_batches(url, ["sample_key", "score"], batch_rows=_ROWS):
                with storage.parsing(url):
                    scores = batch["score"].flatten()
                    if batch["sample_key"].null_count or batch["score"].null_count or scores.null_count:
                        raise ValueError("it has rows without a score")
                    if batch.num_rows:
                        keys.append(batch["sample_key"])
                        scores_RV = scores.to_numpy().reshape(batch.num_rows, -1)
                        means.append(scores_RV.mean(axis=1, dtype=np.float64))
        except FileNotFoundError:
            raise UserError(f"{url} is gone: it was there when this run began") from None
    if not keys:
        return [], np.empty(0)
    found = pa.chunked_array(keys).combine_chunks().dictionary_encode()
    means_R, image_R = np.concatenate(means), found.indices.to_numpy()
    if not np.isfinite(means_R).all():
        key = found[int(np.argmin(np.isfinite(means_R)))].as_py()
        raise UserError(
            f"{shard.urls[0]} holds scores of {key} that are no finite numbers: score that shard again"
        )
    return found.dictionary.to_pylist(), np.bincount(image_R, weights=means_R) / np.bincount(image_R)


def plan_images(choice: ImageChoice, shards: Sequence[Shard]) -> ImagePlan:
    """Decide on the images of all shards, from their tables alone; where a threshold is known, count them.

    Needs 8 bytes of local scratch for an image, whatever the tables hold. Exact; images that score the same as the last
    one that stays do too. Raises UserError where no image has a score, and as `image_scores`.
    """
    scored = [choice.tables.of[shard.id] for shard in shards if shard.id in choice.tables.of]
    with scratch_folder() as scratch:
        local_path = scratch / "image-scores"
        with open(local_path, "wb") as local_file:
            for start in range(0, len(scored), _SHARDS):
                for _, scores_I in map_threads(image_scores, scored[start : start + _SHARDS]):
                    local_file.write(scores_I.tobytes())
        images = local_path.stat().st_size // 8
        if not images:
            raise UserError(
                "no image of these shards has a score in the tables: leave out --table, or score them"
            )
        threshold = choice.threshold
        if threshold is None:
            assert choice.keep is not None
            threshold = find_threshold(local_path, keep_count(images, choice.keep))
        kept = sum(int((part >= threshold).sum()) for part in _parts(np.memmap(local_path, np.float64, "r")))
    return ImagePlan(threshold=threshold, scored=images, kept=kept, without=len(shards) - len(scored))


def find_threshold(local_path: Path, kept: int) -> float:
    """What the `kept` highest of a file of float64 reach and the others do not; the file is left in another order.

    Lies midway between the two nearest scores, so that rounding on another machine decides on no image.
    """
    scores_I = np.memmap(local_path, np.float64, "r+")
    images = len(scores_I)
    if kept == images:
        return -sys.float_info.max
    scores_I.partition(images - kept)
    least = float(scores_I[images - kept])
    below = max(float(part[part < least].max(initial=-np.inf)) for part in _parts(scores_I[: images - kept]))
    middle = below + (least - below) / 2 if below > -np.inf else least
    return middle if middle > below else least


def _parts(scores_I: NDArray[np.float64]) -> Iterator[NDArray[np.float64]]:
    for start in range(0, len(scores_I), _COUNTED):
        yield scores_I[start : start + _COUNTED]
