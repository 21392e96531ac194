"""Small score tables with made-up rows: the same rows for the same arguments."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from patchsieve.pipeline.output.faults import FaultLog
from patchsieve.pipeline.row_config import RowConfig
from patchsieve.pipeline.shards.feed import ShardRecord
from patchsieve.pipeline.shards.reader import Fault
from patchsieve.pipeline.shards.specs import Shard, shard_id
from patchsieve.pipeline.tables.schema import Row, TeacherRecord, table_metadata, table_schema
from patchsieve.pipeline.tables.writer import GROUP_BYTES, TableWriter

CONFIG = RowConfig(
    mask_ratio=0.9,
    first_view=0,
    views=4,
    crop="random",
    masks="uniform",
    estimator="exact",
    removal="decoder",
    metric="l1",
    seed=0,
    size=224,
    precision="fp32",
    store="patches",
    sample=1.0,
    image_field="jpg;jpeg;png",
    decoder="test-1",
)
TEACHER = TeacherRecord(
    name="tiny",
    digest="0123456789abcdef" * 4,
    grid=14,
    patch_size=16,
    heads=3,
    decoder_heads=4,
    output_space="pixels",
    licence=None,
)
VISIBLE = 19
PATCH_BYTES = 16 * 16 * 3


def make_shard(content: bytes, url: str = "/data/a.tar", tag: str = "tag-1") -> Shard:
    """A shard as a listing would report it."""
    return Shard(url=url, name=url, id=shard_id(url), size=len(content), tag=tag)


def shard_record(shard: Shard, content: bytes, **changes: Any) -> ShardRecord:
    """What is recorded of a shard once it has been read."""
    record = ShardRecord(
        name=shard.name,
        size=len(content),
        tag=shard.tag,
        sha256=hashlib.sha256(content).hexdigest(),
        samples=3,
        quarantined=0,
        damaged=False,
    )
    return dataclasses.replace(record, **changes)


def record_of(content: bytes, url: str = "/data/a.tar", **changes: Any) -> ShardRecord:
    """What is recorded of a shard of this content."""
    return shard_record(make_shard(content, url), content, **changes)


def make_rows(
    images: int,
    config: RowConfig = CONFIG,
    *,
    shard: str = "/data/a.tar",
    first_image: int = 0,
    visible: int = VISIBLE,
) -> Iterator[Row]:
    """All views of `images` images; with a fixed crop the views of an image share their pixels."""
    for image in range(first_image, first_image + images):
        picture = np.random.default_rng(image).bytes(20_000)
        for view in range(config.first_view, config.first_view + config.views):
            random = np.random.default_rng((image, view))
            patches = random.bytes(visible * PATCH_BYTES) if config.store == "patches" else None
            pixels = None
            if config.store == "view":
                pixels = picture if config.crop == "center" else random.bytes(20_000)
            yield Row(
                shard=shard,
                sample_key=f"photo-{image:05d}",
                view=view,
                image_height=480,
                image_width=640,
                crop_top=view,
                crop_left=2,
                crop_height=300,
                crop_width=400,
                hflip=bool(random.integers(2)),
                visible=np.sort(random.permutation(196)[:visible]).astype(np.int16),
                score=random.random(visible, dtype=np.float32),
                patches=patches,
                pixels=pixels,
            )


def fault_log(
    faults: Sequence[Fault], path: Path, shard_name: str = "", *, run_id: str = "run-1"
) -> FaultLog:
    """A log that holds these faults; not finished."""
    log = FaultLog(path, shard_name, run_id=run_id)
    for fault in faults:
        log.add(fault)
    return log


def faults_summary(faults: Sequence[Fault]) -> dict[str, Any]:
    """What a record says of these faults."""
    return fault_log(faults, Path("never written")).summary


def write_errors(path: Path, faults: Sequence[Fault], shard_name: str, *, run_id: str) -> None:
    """The errors file of these faults."""
    with fault_log(faults, path, shard_name, run_id=run_id) as log:
        log.finish()


def write_table(
    path: Path,
    shard: ShardRecord,
    *,
    images: int = 3,
    config: RowConfig = CONFIG,
    teacher: TeacherRecord = TEACHER,
    faults: Sequence[Fault] = (),
    run_id: str = "run-1",
    group_bytes: int = GROUP_BYTES,
    visible: int = VISIBLE,
    **metadata: Any,
) -> Path:
    """A whole score table on disk; `metadata` overrides what its footer says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = table_schema(visible=visible, patch_bytes=PATCH_BYTES, store=config.store)
    with TableWriter(path, schema, group_bytes=group_bytes) as writer:
        writer.add(list(make_rows(images, config, shard=shard.name, visible=visible)))
        footer = table_metadata(
            config=config,
            teacher=teacher,
            shard=shard,
            visible=visible,
            errors=faults_summary(faults),
            provenance={"run_id": run_id},
        )
        writer.close({**footer, **metadata})
    return path
