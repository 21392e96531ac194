"""Shards ranked: samples prepared on threads, images scored in batches, all in shard order; nothing is written here.

What pruning and the survey of a budget have in common; runs without Ray.

Shape suffixes: N images, L patches of an image.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from patchsieve.pipeline.output.faults import FaultLog, failure_reason
from patchsieve.pipeline.output.folder import OutputFolder
from patchsieve.pipeline.output.records import RecordKind
from patchsieve.pipeline.shards.feed import MAX_BYTES, ShardFeed, ShardRecord
from patchsieve.pipeline.shards.reader import Fault, Sample, ShardReader
from patchsieve.pipeline.shards.specs import Shard
from patchsieve.pipeline.storage import scratch_folder
from patchsieve.ranker.prune.request import PruneRequest
from patchsieve.ranker.prune.sample import Left, Prepared, prepare_sample
from patchsieve.ranker.select.image_choice import ShardChoice
from patchsieve.ranker.select.patch_scorer import PatchScorer
from patchsieve.ranker.select.selection import Mask
from patchsieve.ranker.select.selector import Selector

_LEFT_PER_BATCH = 8

RankedImage = tuple[Prepared, NDArray[np.float32]]
"""An image with its scores, float32 `[L]`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruneResult:
    """What became of a shard. `failed` is the reason it gave no output, None when it committed.

    `kept` of `patches` stay, of `images` ranked ones, and `coarse` is what their thumbnails are worth in patches;
    `dropped` images went whole for their score, `unscored` ones were ranked although the tables have no score of them;
    bytes of whole shards and of the pruned images alone, of which `grown` take more than before; `whole_bytes`: of the
    first few images as whole crops in the same codec, `whole_bytes_pruned`: of the same ones pruned; times in seconds,
    `waited_s`: in which no batch was there to rank.
    """

    shard_id: str
    samples: int
    quarantined: int
    images: int
    patches: int
    shard_bytes: int
    faults: dict[str, int]
    damaged: bool
    failed: str | None
    waited_s: float
    seconds: float = 0.0
    kept: int = 0
    coarse: int = 0
    tar_bytes: int = 0
    image_bytes_before: int = 0
    image_bytes_after: int = 0
    grown: int = 0
    whole_bytes: int = 0
    whole_bytes_pruned: int = 0
    dropped: int = 0
    unscored: int = 0


class RankedShard:
    """What was ranked of one shard, in batches, and what is known of it at the end.

    `images` were ranked, `unscored` of them although the tables have no score of theirs; `dropped` ones went for their
    score; `faults` are those of all others.
    """

    def __init__(
        self,
        shard: Shard,
        feed: ShardFeed[Prepared | Left],
        scorer: PatchScorer,
        choice: ShardChoice | None,
        faults: FaultLog,
    ) -> None:
        self.shard, self.choice, self.faults = shard, choice, faults
        self._feed, self._scorer = feed, scorer
        self.images = self.unscored = self.dropped = 0
        self.waited_s = 0.0

    def __iter__(self) -> Iterator[list[RankedImage | Left]]:
        waiting = time.monotonic()
        for batch in batches(self._feed, self._scorer.batch_size):
            self.waited_s += time.monotonic() - waiting
            ranked = rank(batch, self._scorer)
            for item in ranked:
                self._count(item)
            yield ranked
            waiting = time.monotonic()
        self.waited_s += time.monotonic() - waiting

    def _count(self, item: RankedImage | Left) -> None:
        if not isinstance(item, Left):
            self.images += 1
            self.unscored += self.choice is not None and item[0].image_score is None
        elif item.dropped:
            self.dropped += 1
        else:
            self.faults.add(item.fault)

    def record(self) -> ShardRecord:
        """The shard as it was read to its end."""
        return self._feed.record(self.faults.samples)

    def why_failed(self, record: ShardRecord, *, salvage: bool) -> str | None:
        """Why a shard that was read to its end gives no output; None where it does."""
        if self.choice is not None and self.choice.sha256 not in ("", record.sha256):
            return "it is not the shard that its score tables were made from: score it again"
        if record.damaged and not salvage:
            return f"damaged archive: {self.faults.archive}; --salvage prunes what it gave"
        return failure_reason(record, self.images + self.dropped, self.faults, "could be pruned")


class ShardWork(abc.ABC):
    """Ranks shards for one output folder, one after the other; a subclass writes what comes of it, as `kind`."""

    kind: ClassVar[RecordKind]

    def __init__(
        self,
        request: PruneRequest,
        scorer: PatchScorer,
        *,
        run_id: str,
        threads: int,
        provenance: dict[str, Any],
    ) -> None:
        """`threads`: those that decode and encode."""
        self._request, self._spec = request, request.spec
        self._scorer, self._provenance = scorer, provenance
        self._output = OutputFolder(request.config.out, self.kind, run_id=run_id)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="images")
        # Two batches ahead, and enough to keep every thread busy when images differ in size.
        self._ahead = 2 * scorer.batch_size + 2 * threads
        self._at_work: dict[int, str] = {}
        self.moved: Callable[[], None] = lambda: None
        """Called from any thread whenever a sample is prepared or written."""

    @property
    def at_work(self) -> list[str]:
        """Keys of the samples that are being decoded now."""
        return list(self._at_work.values())

    def _prepare(self, item: Sample | Fault, choice: ShardChoice | None) -> Prepared | Left:
        thread = threading.get_ident()
        if isinstance(item, Sample):
            self._at_work[thread] = item.key
        try:
            return prepare_sample(item, self._spec, choice)
        finally:
            self._at_work.pop(thread, None)
            self.moved()

    def run(self, shard: Shard) -> PruneResult:
        """Rank one shard and commit what comes of it.

        Raises InfrastructureError where another attempt may help; then nothing was committed but perhaps a tar.
        """
        started = time.monotonic()
        choice = None if self._request.choice is None else self._request.choice.of(shard)
        feed = ShardFeed(
            ShardReader(shard, keep_rejected=True, unsorted=self._spec.unsorted),
            lambda item: self._prepare(item, choice),
            self._pool,
            self._ahead,
        )
        with (
            scratch_folder() as scratch,
            contextlib.closing(feed),
            FaultLog(scratch / "errors.parquet", shard.name, run_id=self._output.run_id) as faults,
        ):
            result = self._write(RankedShard(shard, feed, self._scorer, choice, faults), scratch)
        return dataclasses.replace(result, seconds=time.monotonic() - started)

    @abc.abstractmethod
    def _write(self, ranked: RankedShard, scratch: Path) -> PruneResult:
        """Go through the shard, write below `scratch` what comes of it, and commit that."""

    def _result(
        self, ranked: RankedShard, record: ShardRecord, failed: str | None, **written: int
    ) -> PruneResult:
        return PruneResult(
            shard_id=ranked.shard.id,
            samples=record.samples,
            quarantined=record.quarantined,
            images=ranked.images,
            patches=ranked.images * self._spec.grid**2,
            shard_bytes=record.size,
            faults=ranked.faults.reasons(),
            damaged=record.damaged,
            failed=failed,
            waited_s=ranked.waited_s,
            dropped=ranked.dropped,
            unscored=ranked.unscored,
            **written,
        )


def batches(items: Iterable[Prepared | Left], images: int) -> Iterator[list[Prepared | Left]]:
    """The items in lists that hold so many images, fewer where large samples would fill the memory.

    Where a list ends depends on the items alone, so that a shard is always ranked in the same batches.
    """
    batch: list[Prepared | Left] = []
    prepared = held = 0
    for item in items:
        batch.append(item)
        prepared += isinstance(item, Prepared)
        held += item.nbytes
        if prepared == images or len(batch) >= _LEFT_PER_BATCH * images or held >= MAX_BYTES:
            yield batch
            batch, prepared, held = [], 0, 0
    if batch:
        yield batch


def rank(batch: Sequence[Prepared | Left], scorer: PatchScorer) -> list[RankedImage | Left]:
    """Score the images of a batch; one whose scores are not finite is left."""
    images = [item for item in batch if isinstance(item, Prepared)]
    if not images:
        return [item for item in batch if isinstance(item, Left)]
    scores = iter(scorer.score([image.patches for image in images], [image.sample.key for image in images]))
    ranked: list[RankedImage | Left] = []
    for item in batch:
        if isinstance(item, Left):
            ranked.append(item)
            continue
        scores_L = next(scores)
        if np.isfinite(scores_L).all():
            ranked.append((item, scores_L))
        else:
            reason = f"the scores of {scorer.source.name} are not finite"
            ranked.append(Left.of(item.sample, Fault(item.sample.key, None, "score", reason)))
    return ranked


def keep_masks(selector: Selector, images: Sequence[RankedImage]) -> Mask:
    """Which patches of one or more ranked images stay, bool `[N, L]`."""
    return selector.masks(
        np.stack([scores_L for _, scores_L in images]),
        [image.patches for image, _ in images],
        [image.sample.key for image, _ in images],
    )
