"""Images out of shards and out of pruned sets."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from patchsieve.pipeline import storage
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.images.views import ViewBox, apply_view, center_box
from patchsieve.pipeline.output.records import read_footer
from patchsieve.pipeline.pictures.rows import as_picture
from patchsieve.pipeline.pictures.sheet import HIDDEN_GRAY, Pixels
from patchsieve.pipeline.pruned.dataset import PrunedDataset
from patchsieve.pipeline.pruned.index import INDEX, INDEX_SCHEMA, SHARDS_FOLDER
from patchsieve.pipeline.shards.specs import Shard
from patchsieve.pipeline.teacher.architecture import MAX_GRID
from patchsieve.ranker.gallery.evenly import evenly
from patchsieve.ranker.gallery.photos import Photos
from patchsieve.ranker.gallery.pictured import Pictured

_BOX = ("crop_top", "crop_left", "crop_height", "crop_width")
_SIDE = 224
_COLUMNS = ["sample_key", "grid", "positions", "scores", "kept", *_BOX]


def pictured_shards(
    photos: Photos, path: str, *, grid: int, size: int, count: int, key: str | None
) -> list[Pictured]:
    """Centre crops of shards' images, without scores: `count` of them, or that of one key; see `rank_pictured`."""

    def take(shard: Shard, share: int) -> list[Pictured]:
        found = []
        for name, image in itertools.islice(photos.images(shard, key=key), share):
            height, width = image.shape[1:]
            crop = apply_view(image, center_box(height, width, size=size), size)
            found.append(
                Pictured(
                    origin="shards",
                    path=path,
                    key=name,
                    shard=shard.name,
                    detail=f"{width} x {height} px",
                    pixels=as_picture(crop),
                    shown=np.ones(grid**2, np.bool_),
                )
            )
        return found

    if key is None:
        return evenly(photos.shards, count, take, size=lambda shard: shard.size or 0)
    found = next(filter(None, (take(shard, 1) for shard in photos.shards)), [])
    if not found:
        raise UserError(f"{path} has no image of the sample {key!r}")
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrunedIndex:
    """An index of a pruned set: where it lies, its shard's name and bytes, its tar below the output, empty for none."""

    url: str
    shard: str
    shard_bytes: int
    tar: str


def pruned_indexes(path: str) -> list[PrunedIndex]:
    """The indexes of a pruned set; UserError where one is damaged."""
    url = storage.absolute_url(path)
    found = []
    for info in storage.list_folder(storage.join(url, INDEX.folder), suffix=".parquet"):
        about = read_footer(info.url, size=info.size, newest_schema=INDEX.schema_version).metadata
        with storage.parsing(info.url):
            tar = str(about["output"].get("path", ""))
            if tar and (not tar.startswith(f"{SHARDS_FOLDER}/") or ".." in tar.split("/")):
                raise ValueError(f"its tar is {tar!r}")
            shard = about["shard"]
            found.append(
                PrunedIndex(url=info.url, shard=str(shard["name"]), shard_bytes=int(shard["size"]), tar=tar)
            )
    return found


def index_rows(index: PrunedIndex, columns: list[str]) -> pa.Table:
    """Some columns of an index; UserError where they are not of its types."""
    with storage.parsing(index.url):
        table = pq.read_table(
            pa.BufferReader(storage.read_bytes(index.url)), columns=columns, page_checksum_verification=True
        )
        return table.cast(pa.schema([INDEX_SCHEMA.field(name) for name in columns]))


def pictured_pruned(
    path: str, *, count: int, photos: Photos | None = None, key: str | None = None, order: str | None = None
) -> list[Pictured]:
    """Images of a pruned set: `count` of them, evenly spread over its shards, that of one key, or with `order` `top` or
    `bottom` those that keep most or least; whole where `photos` has them, else what the set keeps. Raises UserError for
    a key that it does not have.
    """
    indexes = pruned_indexes(path)

    def take(index: PrunedIndex, share: int | None) -> list[tuple[int, PrunedIndex, dict[str, object]]]:
        rows = (row for row in index_rows(index, _COLUMNS).to_pylist() if row["kept"] is not None)
        if key is not None:
            rows = (row for row in rows if row["sample_key"] == key)
        return [(row["kept"], index, row) for row in itertools.islice(rows, share)]

    if key is not None:
        chosen = next(filter(None, (take(index, 1) for index in indexes)), [])
        if not chosen:
            raise UserError(f"{path} has no pruned sample {key!r}")
    elif order is not None:
        chosen = [one for index in indexes for one in take(index, None)]
        chosen.sort(key=lambda one: one[0], reverse=order == "top")
        del chosen[count:]
    else:
        chosen = evenly(indexes, count, take, size=lambda index: index.shard_bytes)
    pictured: dict[tuple[str, str], Pictured] = {}
    for index in {one.url: one for _, one, _ in chosen}.values():
        rows_of = {str(row["sample_key"]): row for _, one, row in chosen if one is index}
        pictured |= {(index.url, one.key): one for one in _from_index(path, index, rows_of, photos)}
    found = [pictured.get((index.url, str(row["sample_key"]))) for _, index, row in chosen]
    return [one for one in found if one is not None]


def _from_index(
    path: str, index: PrunedIndex, rows: dict[str, dict[str, object]], photos: Photos | None
) -> Iterator[Pictured]:
    """The samples of these index rows, with the pixels that the set holds of them, or those of their photos."""
    pixels: dict[str, Pixels] = {}
    shown: dict[str, NDArray[np.bool_]] = {}
    if index.tar and index.tar.rpartition(".")[2] == "tar":
        dataset = PrunedDataset(
            storage.join(storage.absolute_url(path), index.tar), handler=lambda error: True
        )
        for sample in itertools.takewhile(lambda _: len(pixels) < len(rows), dataset):
            if sample.key in rows:
                pixels[sample.key] = as_picture(
                    sample.to_image(HIDDEN_GRAY if sample.background is None else None)
                )
    if photos is not None:
        with storage.parsing(index.url):
            boxes = {key: _box(row) for key, row in rows.items()}
        side = max((len(known) for known in pixels.values()), default=_SIDE)
        pixels |= photos.cut(index.shard, boxes, size=side, shard_bytes=index.shard_bytes, of=index.url)
    for key, row in rows.items():
        with storage.parsing(index.url):
            grid = int(str(row["grid"]))
            positions = np.asarray(row["positions"], np.int64)
            scores_V = np.asarray(row["scores"], np.float32)
            if not 0 < grid <= MAX_GRID or (
                positions.size and not 0 <= positions.min() <= positions.max() < grid**2
            ):
                raise ValueError("a row names positions that its grid does not have")
            if len(scores_V) != len(positions):  # a single one would be taken for all
                raise ValueError(f"a row has {len(scores_V)} scores of {len(positions)} patches")
            shown[key] = np.zeros(grid**2, np.bool_)
            shown[key][positions] = True
            scores_L = np.full(grid**2, np.nan, np.float32)
            scores_L[positions] = scores_V
        here = pixels.get(key, _blank(grid))
        yield Pictured(
            origin="pruned",
            path=path,
            key=key,
            shard=index.shard,
            detail=f"{len(positions)} of {grid**2} patches kept",
            pixels=here,
            shown=shown[key] if key in pixels else np.zeros(grid**2, np.bool_),
            ranker=scores_L,
        )


def _box(row: dict[str, object]) -> ViewBox:
    top, left, height, width = (int(str(row[name])) for name in _BOX)
    return ViewBox(top, left, height, width, hflip=False)


@functools.cache
def _blank(grid: int) -> NDArray[np.uint8]:
    # One for all: two thousand of the largest would take 50 GB.
    return np.full((grid * 16, grid * 16, 3), HIDDEN_GRAY, np.uint8)
