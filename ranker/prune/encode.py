"""What each sample becomes in the pruned shard: image files, members, and its row of the index.

Shape suffixes: L patches of an image.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from patchsieve.pipeline.pruned.codec import flatten_dropped, pack_mosaic
from patchsieve.pipeline.pruned.format import PackedRecord, mosaic_columns
from patchsieve.pipeline.pruned.index import IndexRow
from patchsieve.pipeline.shards.reader import Fault
from patchsieve.ranker.prune.feed import Left, Prepared, PruneSpec, Ranked, new_members


@dataclasses.dataclass(frozen=True, kw_only=True)
class Written:
    """What one sample becomes: members in order, its row where it is one, its fault."""

    members: list[tuple[str, bytes]]
    row: IndexRow | None
    fault: Fault | None


def encode(item: Ranked, keep_L: NDArray[np.bool_] | None, spec: PruneSpec) -> Written:
    """What a ranked image becomes under its keep mask, or how what is left is copied; safe on many threads."""
    if isinstance(item, Left):
        return _encode_left(item, spec)
    assert keep_L is not None
    image, scores_L = item
    positions = np.flatnonzero(keep_L)
    box = image.box
    crop = (box.top, box.left, box.height, box.width)
    files = _image_files(image, keep_L, positions, crop, spec)
    members: list[tuple[str, bytes]] = []
    for field, data in image.sample.fields.items():
        if field != image.field:
            members.append((image.sample.members[field], data))
        elif files:
            members += zip(new_members(image.sample, field, spec), files, strict=True)
    row = IndexRow(
        sample_key=image.sample.key,
        bytes_before=len(image.sample.fields[image.field]),
        bytes_after=sum(map(len, files)),
        image_size=image.image_size,
        crop=crop,
        positions=positions.astype(np.int16),
        scores=scores_L[positions],
        image_score=image.image_score,
    )
    return Written(members=members, row=row, fault=None)


def _encode_left(item: Left, spec: PruneSpec) -> Written:
    size = sum(len(data) for _, data in item.members)
    copied = spec.codec is not None and not spec.drop_bad and not item.dropped
    row = None
    if item.is_sample:
        assert item.fault.sample_key is not None
        row = IndexRow(
            sample_key=item.fault.sample_key,
            bytes_before=size,
            bytes_after=size if copied else 0,
            image_score=item.image_score,
            reason=f"{item.fault.stage}: {item.fault.reason}",
        )
    return Written(
        members=list(item.members) if copied else [], row=row, fault=None if item.dropped else item.fault
    )


def _image_files(
    image: Prepared,
    keep_L: NDArray[np.bool_],
    positions: NDArray[np.int64],
    crop: tuple[int, int, int, int],
    spec: PruneSpec,
) -> tuple[bytes, ...]:
    """What stands for the image, in the order of `new_members`; nothing for an index."""
    if spec.codec is None:
        return ()
    assert image.pixels is not None
    if spec.format == "masked":
        return (spec.codec.encode(flatten_dropped(image.pixels, keep_L, spec.grid)),)
    record = PackedRecord(
        grid=spec.grid,
        block=spec.block,
        positions=tuple(positions.tolist()),
        columns=mosaic_columns(len(positions), spec.block),
        original_size=image.image_size,
        crop=crop,
        codec=spec.codec.name,
    )
    return spec.codec.encode(pack_mosaic(image.pixels, record)), record.to_json()
