"""Ways to a pruned sample: from a packed shard, from an original shard with an index, or selected on the spot.

A source reads the samples of one shard; what is wrong with a sample's data is a ContentError. Shape suffixes: L grid
positions, K kept ones, S side of the crop in pixels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from patchsieve.pipeline import storage
from patchsieve.pipeline.errors import ContentError, UserError
from patchsieve.pipeline.images.decode import decode_image
from patchsieve.pipeline.images.views import ViewBox, apply_view, center_box
from patchsieve.pipeline.output.records import parse_footer
from patchsieve.pipeline.pruned.codec import decode_background, decode_mosaic, unpack_mosaic
from patchsieve.pipeline.pruned.format import (
    BACKGROUND_FIELD,
    MAX_GRID,
    MAX_SIDE,
    RECORD_FIELD,
    PackedRecord,
    mosaic_columns,
)
from patchsieve.pipeline.pruned.index import INDEX_SCHEMA
from patchsieve.pipeline.pruned.sample import PrunedSample, gather_patches
from patchsieve.pipeline.row_config import IMAGE_FIELDS
from patchsieve.pipeline.shards.reader import Sample, pick_image
from patchsieve.pipeline.shards.specs import Shard

ReadSample = Callable[[Sample], PrunedSample | None]
"""A sample of a shard as pruned; None for one that was left out on purpose. Raises ContentError."""
Select = Callable[[Tensor], Any]
"""uint8 image `[3, S, S]` -> bool keep mask `[L]`, of a square grid that divides S."""
Transform = Callable[[Tensor], Tensor]
"""The user's augmentation: uint8 image `[3, H, W]` -> uint8 image `[3, S, S]`."""

DROPPED = "dropped"
"""What the reason of an index row begins with when the image was left out on purpose."""

_SIDES = ("top", "left", "height", "width")
_INDEX_COLUMNS = [
    *("sample_key", "image_height", "image_width"),
    *(f"crop_{side}" for side in _SIDES),
    *("grid", "positions", "reason"),
]


class Source(Protocol):
    """Where pruned samples come from."""

    def open(self, shard: Shard) -> ReadSample:
        """The reader of one shard's samples."""


@dataclasses.dataclass(frozen=True)
class PackedSource:
    """Shards that `prune` wrote with `--format packed`."""

    def open(self, shard: Shard) -> ReadSample:
        def read(sample: Sample) -> PrunedSample:
            record = PackedRecord.from_json(_field(sample, RECORD_FIELD))
            mosaic = decode_mosaic(_field(sample, record.image_field), record)
            blocks_K3BB = unpack_mosaic(mosaic, record)
            used, background = {RECORD_FIELD, record.image_field}, None
            if record.background is not None:
                background = decode_background(_field(sample, BACKGROUND_FIELD), record)
                used.add(BACKGROUND_FIELD)
            return PrunedSample(
                shard=shard.name,
                key=sample.key,
                patches=blocks_K3BB.permute(0, 2, 3, 1).reshape(len(blocks_K3BB), -1),
                positions=torch.tensor(record.positions),
                grid=record.grid,
                block=record.block,
                original_size=record.original_size,
                crop=record.crop,
                fields=_others(sample, used),
                background=background,
            )

        return read


@dataclasses.dataclass(frozen=True, kw_only=True)
class IndexedSource:
    """Original shards, cropped and cut as the index in `folder` says (`prune --format index`).

    `size`: side of the crop in pixels, where it is not to be the one that the patches were ranked at.
    """

    folder: str
    size: int | None = None
    image_field: str = IMAGE_FIELDS

    def open(self, shard: Shard) -> ReadSample:
        """See `Source`; UserError where the shard has no index or another file is in its place."""
        size, background, rows = self._read_index(shard)

        def read(sample: Sample) -> PrunedSample | None:
            row = rows.get(sample.key)
            if row is None:
                raise ContentError(f"the index of {shard.name} does not know this sample")
            if row["positions"] is None:
                reason = row["reason"] or "not pruned"
                if reason.startswith(DROPPED):
                    return None
                raise ContentError(f"its index row has no positions: {reason}")
            field, image = _image(sample, self.image_field)
            return _cut(shard, sample, field, image, row, size, background)

        return read

    def _read_index(self, shard: Shard) -> tuple[int, int | None, dict[str, dict[str, Any]]]:
        """Sides of the crop and of the thumbnail in pixels, and the rows of the shard by key."""
        url = storage.join(self.folder, f"{shard.id}.parquet")
        try:
            data = pa.py_buffer(storage.read_bytes(url))
        except FileNotFoundError:
            raise UserError(
                f"no index of {shard.name} at {url}; prune it with --format index, and give the same --root as there"
            ) from None
        with storage.parsing(url):
            footer = parse_footer(url, data)
            pruned_bytes = int(footer.metadata["shard"]["size"])
        if shard.size not in (None, pruned_bytes):
            raise UserError(
                f"{shard.name} has {shard.size} bytes, and had {pruned_bytes} when {url} was made: prune it again"
            )
        with storage.parsing(url):
            for name in _INDEX_COLUMNS:
                if footer.schema.field(name).type != INDEX_SCHEMA.field(name).type:
                    raise TypeError(f"its column {name} is {footer.schema.field(name).type}")
            config = footer.metadata["config"]
            size, background = config["size"], config.get("background")
            for side in (size, size if background is None else background):
                if type(side) is not int or not 1 <= side <= MAX_SIDE:
                    raise ValueError(f"a crop of {side!r} px")
            table = pq.read_table(
                pa.BufferReader(data), columns=_INDEX_COLUMNS, page_checksum_verification=True
            )
            return self.size or size, background, {row["sample_key"]: row for row in table.to_pylist()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnlineSource:
    """Original shards whose patches are chosen as they are read, after the user's own augmentation.

    Without a `transform` images get the centre crop of prune, at `size` pixels. `background`: side of the thumbnail of
    each in pixels, None for none.
    """

    select: Select
    transform: Transform | None = None
    size: int = 224
    background: int | None = None
    image_field: str = IMAGE_FIELDS

    def open(self, shard: Shard) -> ReadSample:
        """See `Source`; UserError for a transform or selection that gives what it must not."""

        def read(sample: Sample) -> PrunedSample:
            field, image = _image(sample, self.image_field)
            original_size = crop = None
            if self.transform is None:
                height, width = image.shape[1:]
                box = center_box(height, width, size=self.size)
                original_size, crop = (height, width), (box.top, box.left, box.height, box.width)
                pixels_3SS = apply_view(image, box, self.size)
            else:
                image = pixels_3SS = _checked_image(self.transform(image))
                box = ViewBox(0, 0, image.shape[1], image.shape[2], hflip=False)
            positions, grid = _checked_mask(self.select(pixels_3SS), pixels_3SS.shape[1])
            block = pixels_3SS.shape[1] // grid
            return PrunedSample(
                shard=shard.name,
                key=sample.key,
                patches=gather_patches(pixels_3SS, positions, block),
                positions=positions,
                grid=grid,
                block=block,
                original_size=original_size,
                crop=crop,
                fields=_others(sample, {field}),
                background=_thumbnail(image, box, self.background, pixels_3SS.shape[1]),
            )

        return read


def decode_fields(sample: PrunedSample, decoders: Mapping[str, Callable[[bytes], Any]]) -> PrunedSample:
    """The sample with the fields decoded that there is a decoder for; ContentError where one fails."""
    fields = dict(sample.fields)
    for name in fields.keys() & decoders.keys():
        try:
            fields[name] = decoders[name](fields[name])
        except Exception as error:  # decoders are the user's, and data fails them in any way
            raise ContentError(f"field {name} cannot be decoded: {error!r}") from error
    return dataclasses.replace(sample, fields=fields)


def _cut(
    shard: Shard,
    sample: Sample,
    field: str,
    image: Tensor,
    row: Mapping[str, Any],
    size: int,
    background: int | None,
) -> PrunedSample:
    """The patches of an image that an index row names; ContentError for a row that does not fit it."""
    height, width = image.shape[1:]
    top, left, crop_height, crop_width = (int(row[f"crop_{side}"] or 0) for side in _SIDES)
    grid, positions = int(row["grid"] or 0), row["positions"]
    if (row["image_height"], row["image_width"]) != (height, width):
        raise ContentError(
            f"the image has {height} x {width} pixels, in the index {row['image_height']} x {row['image_width']}"
        )
    if not 1 <= grid <= MAX_GRID or size % grid:
        raise ContentError(f"its index row has a grid of {grid} for {size} px")
    try:
        record = PackedRecord(
            grid=grid,
            block=size // grid,
            positions=tuple(positions),
            columns=mosaic_columns(max(1, len(positions)), size // grid),
            original_size=(height, width),
            crop=(top, left, crop_height, crop_width),
            codec="png",
        )
    except ValueError as error:
        raise ContentError(f"its index row: {error}") from None
    at_K = torch.tensor(record.positions)
    box = ViewBox(*record.crop, hflip=False)
    pixels_3SS = apply_view(image, box, size)
    return PrunedSample(
        shard=shard.name,
        key=sample.key,
        patches=gather_patches(pixels_3SS, at_K, record.block),
        positions=at_K,
        grid=grid,
        block=record.block,
        original_size=record.original_size,
        crop=record.crop,
        fields=_others(sample, {field}),
        background=_thumbnail(image, box, background, size),
    )


def _thumbnail(image: Tensor, box: ViewBox, side: int | None, size: int) -> Tensor | None:
    """The crop at `side` pixels, if there is to be a thumbnail; UserError for one larger than the crop, of `size`."""
    if side is None:
        return None
    if side > size:
        raise UserError(f"a background of {side} px for a crop of {size} px: it must be no larger")
    return apply_view(image, box, side)


def _field(sample: Sample, name: str) -> bytes:
    if name in sample.problems:
        raise ContentError(f"{name}: {sample.problems[name]}")
    if name not in sample.fields:
        raise ContentError(
            f"it has no {name}: shards that were never pruned take select= or index=; in a pruned one, prune copied it "
            "as it was, which its errors file explains: to skip such samples give a handler, or prune with --drop-bad"
        )
    return sample.fields[name]


def _image(sample: Sample, image_field: str) -> tuple[str, Tensor]:
    """(field, decoded pixels) of a sample's image."""
    found = pick_image(sample, image_field)
    if found is None:
        raise ContentError(f"it has no image in any of the fields {image_field}")
    return found[0], decode_image(found[1])


def _others(sample: Sample, used: set[str]) -> dict[str, Any]:
    return {name: data for name, data in sample.fields.items() if name not in used}


def _checked_image(pixels: Any) -> Tensor:
    shape = list(getattr(pixels, "shape", ()))
    if (
        not isinstance(pixels, Tensor)
        or pixels.dtype != torch.uint8
        or shape[:1] != [3]
        or len(set(shape[1:])) != 1
    ):
        raise UserError(
            f"transform gave {type(pixels).__name__} {getattr(pixels, 'dtype', '')} {shape}, must give a uint8 tensor"
            " [3, S, S]; normalisation comes later, in the collate"
        )
    return pixels.contiguous()


def _checked_mask(keep: Any, size: int) -> tuple[Tensor, int]:
    """(kept positions, grid) of what a selection gave."""
    keep_L = keep.cpu().numpy() if isinstance(keep, Tensor) else np.asarray(keep)
    grid = math.isqrt(keep_L.size)
    if (
        keep_L.dtype != np.bool_
        or keep_L.ndim != 1
        or grid**2 != keep_L.size
        or not keep_L.any()
        or size % grid
    ):
        raise UserError(
            f"select gave {keep_L.dtype} {list(keep_L.shape)} for an image of {size} px, must give a bool mask of a"
            " square grid that divides it, with a patch to keep"
        )
    return torch.from_numpy(np.flatnonzero(keep_L)), grid
