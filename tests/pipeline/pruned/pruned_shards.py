"""Small packed shards and indexes written step by step, without the prune job."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from patchsieve.pipeline.images.decode import decode_image
from patchsieve.pipeline.images.views import apply_view, draw_view
from patchsieve.pipeline.pruned.codec import ImageCodec, pack_mosaic
from patchsieve.pipeline.pruned.format import PackedRecord, mosaic_columns
from patchsieve.pipeline.pruned.index import INDEX_SCHEMA
from patchsieve.pipeline.shards.specs import Shard, expand_shards
from patchsieve.pipeline.shards.writer import PrunedTar
from tests.helpers.photos import photo_samples, write_shard

GRID, BLOCK = 4, 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Photo:
    """One photo of a shard, as it was and as it was pruned; `crop_pixels`: uint8 `[3, S, S]`."""

    key: str
    fields: dict[str, bytes]
    record: PackedRecord
    crop_pixels: torch.Tensor

    @property
    def keep(self) -> np.ndarray:
        """The mask that the positions stand for."""
        return np.isin(np.arange(self.record.grid**2), self.record.positions)


def mask_of(number: int, grid: int = GRID, count: int = 8) -> np.ndarray:
    """`count` patches, others for each number."""
    keep = np.zeros(grid**2, np.bool_)
    keep[np.random.default_rng(number).permutation(grid**2)[:count]] = True
    return keep


def make_photos(
    count: int, seed: int = 0, *, grid: int = GRID, block: int = BLOCK, keep: int = 8, codec: str = "png"
) -> list[Photo]:
    """Photos of different sizes with a mask each, cropped at the centre."""
    size = grid * block
    photos = []
    for number, (key, fields) in enumerate(photo_samples(count, seed, 90 + 10 * seed, 120)):
        image = decode_image(fields["jpg"])
        height, width = image.shape[1:]
        box = draw_view(0, "", 0, height=height, width=width, crop="center", size=size)
        positions = tuple(np.flatnonzero(mask_of(number, grid, keep)).tolist())
        record = PackedRecord(
            grid=grid,
            block=block,
            positions=positions,
            columns=mosaic_columns(len(positions), block),
            original_size=(height, width),
            crop=(box.top, box.left, box.height, box.width),
            codec=codec,
        )
        photos.append(Photo(key=key, fields=fields, record=record, crop_pixels=apply_view(image, box, size)))
    return photos


def packed_members(photo: Photo) -> dict[str, bytes]:
    """The fields of the packed sample."""
    mosaic = ImageCodec(photo.record.codec).encode(pack_mosaic(photo.crop_pixels, photo.record))
    packed = {photo.record.image_field: mosaic, "patches.json": photo.record.to_json()}
    return {**packed, **{name: data for name, data in photo.fields.items() if name != "jpg"}}


def write_packed(path: Path, photos: Sequence[Photo], more: dict[str, bytes] | None = None) -> Path:
    """A packed shard of these photos, and of `more` members by name at its end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with PrunedTar(path) as tar:
        for photo in photos:
            for field, data in packed_members(photo).items():
                tar.add(f"{photo.key}.{field}", data)
        for name, data in (more or {}).items():
            tar.add(name, data)
    return path


def write_original(path: Path, photos: Sequence[Photo]) -> Shard:
    """The shard that the photos come from."""
    return expand_shards([str(write_shard(path, [(photo.key, photo.fields) for photo in photos]))])[0]


def write_index(out: Path, shard: Shard, photos: Sequence[Photo], **changes: dict[str, Any]) -> Path:
    """The index of the photos below `out`; `changes` are columns of a row, by the photo's key."""
    rows = []
    for photo in photos:
        top, left, height, width = photo.record.crop
        row = {
            "shard": shard.name,
            "sample_key": photo.key,
            "image_height": photo.record.original_size[0],
            "image_width": photo.record.original_size[1],
            "crop_top": top,
            "crop_left": left,
            "crop_height": height,
            "crop_width": width,
            "grid": photo.record.grid,
            "positions": list(photo.record.positions),
            "reason": None,
        }
        rows.append({**row, **changes.get(photo.key, {})})
    about = {"config": {"size": photos[0].record.size}, "shard": {"size": shard.size}}
    metadata = json.dumps({"schema_version": 1, **about})
    kinds = [(name, INDEX_SCHEMA.field(name).type) for name in rows[0]]
    schema = pa.schema(kinds, {"patchsieve": metadata})
    path = out / "index" / f"{shard.id}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema), path)
    return path
