"""Score tables for choosing whole images: rows of chosen scores for the samples of a real shard."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from patchsieve.pipeline.output.faults import NO_ERRORS
from patchsieve.pipeline.shards.feed import ShardRecord
from patchsieve.pipeline.tables.schema import Row, row_identity, table_metadata, table_schema
from patchsieve.pipeline.tables.writer import TableWriter
from tests.helpers.tables import CONFIG, TEACHER

OFFSETS = np.array([-0.125, 0.0, 0.125], np.float32)
"""Of the three pseudo-scores of a view from their mean; exact in float32 for the means of the tests."""


def write_image_table(
    folder: Path, shard: Path, scores: Mapping[str, Sequence[float]], *, name: str = "", **changes: Any
) -> Path:
    """The table of a shard: the mean pseudo-score of each view, by sample key; `changes` are fields of RowConfig."""
    views = len(next(iter(scores.values())))
    config = dataclasses.replace(CONFIG, store="none", views=views, **changes)
    data = shard.read_bytes()
    record = ShardRecord(
        name=name or str(shard),
        size=len(data),
        tag="",
        sha256=hashlib.sha256(data).hexdigest(),
        samples=len(scores),
        quarantined=0,
        damaged=False,
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{shard.stem}-{config.first_view}.parquet"
    schema = table_schema(visible=len(OFFSETS), patch_bytes=768, store="none")
    metadata = table_metadata(
        config=config,
        teacher=TEACHER,
        shard=record,
        visible=len(OFFSETS),
        errors=NO_ERRORS,
        provenance={"run_id": "run-1"},
    )
    with TableWriter(path, schema, group_bytes=4096) as writer:
        for key, means in scores.items():
            for view, mean in enumerate(means):
                writer.add([_row(record.name, key, config.first_view + view, mean)])
        writer.close(metadata)
    return path


def identity_of(**changes: Any) -> str:
    """The row identity of such a table of 2 views."""
    return row_identity(dataclasses.replace(CONFIG, store="none", views=2, **changes), TEACHER.digest)


def _row(shard: str, key: str, view: int, mean: float) -> Row:
    return Row(
        shard=shard,
        sample_key=key,
        view=view,
        image_height=90,
        image_width=120,
        crop_top=0,
        crop_left=0,
        crop_height=90,
        crop_width=90,
        hflip=False,
        visible=np.arange(len(OFFSETS), dtype=np.int16),
        score=np.float32(mean) + OFFSETS,
        patches=None,
        pixels=None,
    )
