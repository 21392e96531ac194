"""The first pass of a budget: the scores of every image of the dataset, and the one threshold that they give.

A record file per shard holds them, so that a pass that was killed goes on where it was; the plan made, they go.

Shape suffixes: N images, L patches of an image.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from patchsieve.pipeline import storage
from patchsieve.pipeline.identity import canonical_json, digest_of
from patchsieve.pipeline.output.faults import count_reasons
from patchsieve.pipeline.output.folder import OutputFolder
from patchsieve.pipeline.output.records import METADATA_KEY, RecordKind, verify_file
from patchsieve.pipeline.shards.reader import Fault
from patchsieve.pipeline.shards.specs import Shard
from patchsieve.pipeline.storage import scratch_folder
from patchsieve.ranker.prune.feed import Left, PruneSpec, batches, feed_of, rank
from patchsieve.ranker.prune.shard import PruneResult, why_failed
from patchsieve.ranker.select.budget import Budget, find_budget
from patchsieve.ranker.select.image_choice import ImageChoice
from patchsieve.ranker.select.patch_scorer import PatchScorer
from patchsieve.ranker.select.selection import log_masses
from patchsieve.ranker.select.selector import Selector

SURVEY = RecordKind("survey", schema_version=1)
_LIMIT = 2**32


class ShardSurvey:
    """Ranks the images of shards, one shard after the other, and stores their scores."""

    def __init__(
        self,
        scorer: PatchScorer,
        spec: PruneSpec,
        output: OutputFolder,
        *,
        choice: ImageChoice | None,
        fields: dict[str, Any],
        provenance: dict[str, Any],
        threads: int,
        salvage: bool,
    ) -> None:
        """`choice`: which images stay, None for all. `fields`: everything that can change a score. `threads`: those
        that decode.
        """
        self._choice = choice
        self._salvage = salvage
        self._scorer, self._output = scorer, output
        self._spec = dataclasses.replace(spec, format="index", codec=None)
        self._fields, self._provenance = fields, provenance
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="images")
        self._ahead = 2 * scorer.batch_size + 2 * threads

    def survey(self, shard: Shard) -> PruneResult:
        """Rank one shard and commit its scores.

        Raises InfrastructureError where another attempt may help; then nothing was committed.
        """
        started = time.monotonic()
        faults: list[Fault] = []
        positions = self._spec.grid**2
        schema = pa.schema([pa.field("scores", pa.list_(pa.float32(), positions), nullable=False)])
        choice = None if self._choice is None else self._choice.of(shard)
        feed = feed_of(shard, self._spec, self._pool, self._ahead, choice)
        with scratch_folder() as scratch:
            local_path = scratch / "scores.parquet"
            images = dropped = 0
            try:
                with pq.ParquetWriter(local_path, schema, compression="zstd", use_dictionary=False) as writer:
                    for batch in batches(feed, self._scorer.batch_size):
                        ranked = rank(batch, self._scorer)
                        left = [item for item in ranked if isinstance(item, Left)]
                        faults += [item.fault for item in left if not item.dropped]
                        dropped += sum(item.dropped for item in left)
                        scores = [item[1] for item in ranked if not isinstance(item, Left)]
                        if scores:
                            flat = pa.array(np.concatenate(scores))
                            column = pa.FixedSizeListArray.from_arrays(flat, positions)
                            writer.write_table(pa.table([column], schema=schema))
                        images += len(scores)
                    record = feed.record(faults)
                    metadata = {
                        "schema_version": SURVEY.schema_version,
                        "identity": digest_of(self._fields),
                        "shard": dataclasses.asdict(record),
                        "errors": {"rows": 0, "digest": ""},
                        "provenance": self._provenance,
                    }
                    writer.add_key_value_metadata({METADATA_KEY.decode(): canonical_json(metadata)})
            finally:
                feed.close()
            verify_file(local_path, schema=schema, rows=images, metadata=metadata)
            failed = why_failed(record, images + dropped, faults, salvage=self._salvage, choice=choice)
            if failed is None:
                self._output.commit(shard, local_path, None)
        return PruneResult(
            shard_id=shard.id,
            samples=record.samples,
            quarantined=record.quarantined,
            images=images,
            kept=0,
            patches=images * positions,
            shard_bytes=record.size,
            tar_bytes=0,
            image_bytes_before=0,
            image_bytes_after=0,
            faults=count_reasons(faults),
            damaged=record.damaged,
            failed=failed,
            seconds=time.monotonic() - started,
            waited_s=0.0,
            dropped=dropped,
        )


def budget_of(output: OutputFolder, shards: Sequence[Shard], selector: Selector) -> Budget:
    """The budget of a dataset whose shards were surveyed into `output`; errors as `find_budget`."""
    target, temperature, floor = selector.target, selector.temperature, selector.floor
    assert target is not None
    assert temperature is not None
    assert floor is not None

    def chunks() -> Iterator[NDArray[np.float64]]:
        for shard in shards:
            data = storage.read_bytes(output.record_url(shard), limit=_LIMIT)
            for batch in pq.ParquetFile(pa.BufferReader(data)).iter_batches(columns=["scores"]):
                scores = batch.column(0).flatten().to_numpy(zero_copy_only=False)
                yield log_masses(scores.reshape(-1, selector.positions), temperature)

    return find_budget(chunks, target, floor=floor, ceiling=selector.ceiling)


def remove_survey(output: OutputFolder, shards: Sequence[Shard]) -> None:
    """Remove the scores that a plan was made of."""
    for shard in shards:
        storage.remove(output.record_url(shard))
