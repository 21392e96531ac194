"""The first pass of a budget: the scores of every image of the dataset, and the one threshold that they give.

A record file per shard holds them, so that a pass that was killed goes on where it was; the plan made, they go.

Shape suffixes: N images, L patches of an image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from patchsieve.pipeline import storage
from patchsieve.pipeline.errors import DamagedFileError, UserError
from patchsieve.pipeline.identity import digest_of
from patchsieve.pipeline.output.folder import OutputFolder
from patchsieve.pipeline.output.records import RecordKind
from patchsieve.pipeline.output.sealed import finish_file
from patchsieve.pipeline.shards.specs import Shard
from patchsieve.ranker.prune.ranking import PruneResult, RankedShard, ShardWork
from patchsieve.ranker.prune.request import PruneRequest
from patchsieve.ranker.prune.sample import Left
from patchsieve.ranker.select.budget import Budget, find_budget
from patchsieve.ranker.select.patch_scorer import PatchScorer
from patchsieve.ranker.select.selection import log_masses
from patchsieve.ranker.select.selector import Selector

SURVEY = RecordKind("survey", schema_version=2)
_LIMIT = 2**32


class ShardSurvey(ShardWork):
    """Stores the scores of all images of shards."""

    kind = SURVEY

    def __init__(self, request: PruneRequest, scorer: PatchScorer, **options: Any) -> None:
        """`options`: the rest of what `ShardWork` takes."""
        # No crops are made that would be written.
        spec = dataclasses.replace(request.spec, format="index", codec=None, background=None)
        super().__init__(dataclasses.replace(request, spec=spec), scorer, **options)

    def _write(self, ranked: RankedShard, scratch: Path) -> PruneResult:
        positions = self._spec.grid**2
        schema = pa.schema([pa.field("scores", pa.list_(pa.float32(), positions), nullable=False)])
        local_path = scratch / "scores.parquet"
        with pq.ParquetWriter(
            local_path, schema, compression="zstd", use_dictionary=False, write_page_checksum=True
        ) as writer:
            for batch in ranked:
                scores = [item[1] for item in batch if not isinstance(item, Left)]
                if scores:
                    flat = pa.array(np.concatenate(scores))
                    column = pa.FixedSizeListArray.from_arrays(flat, positions)
                    writer.write_table(pa.table([column], schema=schema))
            record = ranked.record()
            metadata = {
                "schema_version": SURVEY.schema_version,
                "identity": digest_of(self._request.survey_fields),
                "shard": dataclasses.asdict(record),
                "errors": {"rows": 0, "digest": ""},
                "provenance": self._provenance,
            }
            finish_file(writer, local_path, schema=schema, rows=ranked.images, metadata=metadata)
        failed = ranked.why_failed(record, salvage=self._request.config.salvage)
        if failed is None:
            self._output.commit(ranked.shard, local_path, None)
        return self._result(ranked, record, failed)


def budget_of(output: OutputFolder, shards: Sequence[Shard], selector: Selector) -> Budget:
    """The budget of a dataset whose shards were surveyed into `output`; errors as `find_budget`."""
    target, temperature, floor = selector.target, selector.temperature, selector.floor
    assert target is not None
    assert temperature is not None
    assert floor is not None

    def chunks() -> Iterator[NDArray[np.float64]]:
        for shard in shards:
            url = output.record_url(shard)
            try:
                with storage.parsing(url):
                    table = pq.read_table(
                        pa.BufferReader(storage.read_bytes(url, limit=_LIMIT)),
                        page_checksum_verification=True,
                    )
                    scores = table.column("scores").combine_chunks().flatten().to_numpy(zero_copy_only=False)
                    scores_NL = scores.reshape(-1, selector.positions)
            except DamagedFileError as error:
                # Its footer was sound, so that it counted as done: run again, it is not.
                storage.remove(url)
                raise UserError(f"{error}; it has been removed, run again to have it made again") from None
            yield log_masses(scores_NL, temperature)

    return find_budget(chunks, target, floor=floor, ceiling=selector.ceiling)


def remove_survey(output: OutputFolder, shards: Sequence[Shard]) -> None:
    """Remove the scores that a plan was made of."""
    for shard in shards:
        storage.remove(output.record_url(shard))
