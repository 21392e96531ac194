"""Images out of score tables: the views of a sample put together, with the photo where its shard is given.

Shape suffixes: K views of one crop, V visible patches, L patches of the grid, P values of a patch.
"""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from patchsieve.pipeline.errors import ContentError, DamagedFileError, UserError
from patchsieve.pipeline.images.patches import unpatchify
from patchsieve.pipeline.images.views import ViewBox, decode_view
from patchsieve.pipeline.pictures.rows import as_picture
from patchsieve.pipeline.pictures.sheet import HIDDEN_GRAY, Pixels
from patchsieve.pipeline.scoring.aggregate import dense_scores
from patchsieve.pipeline.tables.reader import ScoreTables, TableFile, table_batches
from patchsieve.ranker.gallery.evenly import evenly
from patchsieve.ranker.gallery.photos import Photos
from patchsieve.ranker.gallery.pictured import Pictured
from patchsieve.ranker.learning.agreement import Scores

_BOX = ("crop_top", "crop_left", "crop_height", "crop_width", "hflip")
_ROWS_READ = 64

Row = dict[str, Any]
Shard = list[TableFile]
"""The tables of one shard: several where more views were scored later."""


def pictured_tables(
    tables: ScoreTables,
    paths: Mapping[str, str],
    *,
    count: int,
    photos: Photos | None = None,
    key: str | None = None,
    order: str | None = None,
) -> list[Pictured]:
    """Images of tables: `count` of them, evenly spread over the shards; the one of a `key`; or, with `order` `top` or
    `bottom`, those with the highest or lowest mean score. `paths`: what the tables were given as, by URL.

    Raises UserError for a key that the tables do not have, and for tables that are damaged.
    """
    wanted: list[tuple[Shard, Collection[str]]]
    shards = _shards(tables)
    if key is not None:
        holder = next((shard for shard in shards if _has(shard, key)), None)
        if holder is None:
            raise UserError(f"{', '.join(paths.values())} has no sample {key!r}")
        wanted = [(holder, {key})]
    elif order is not None:
        wanted = _extremes(shards, count, highest=order == "top")
    else:

        def take(shard: Shard, share: int) -> list[Pictured]:
            return _images(tables, paths, shard, share, photos)

        return evenly(shards, count, take, size=lambda shard: shard[0].images)
    found = [one for shard, what in wanted for one in _images(tables, paths, shard, what, photos)]
    if order is not None:
        found.sort(key=lambda one: one.mean_score or 0.0, reverse=order == "top")
    return found


def _shards(tables: ScoreTables) -> list[Shard]:
    by_content: dict[str, Shard] = defaultdict(list)
    for file in tables.files:
        by_content[file.sha256].append(file)
    return list(by_content.values())


def _has(shard: Shard, key: str) -> bool:
    return any(
        key in batch.column("sample_key").to_pylist() for batch in table_batches(shard[0].url, ["sample_key"])
    )


def _extremes(shards: Sequence[Shard], count: int, *, highest: bool) -> list[tuple[Shard, Collection[str]]]:
    """The keys with the highest or lowest means, by their shards; one shard's keys are in memory at a time."""

    def means() -> Iterator[tuple[float, int, str]]:
        for number, shard in enumerate(shards):
            sums: dict[str, list[float]] = defaultdict(list)
            for file in shard:
                for batch in table_batches(file.url, ["sample_key", "score"]):
                    score_KV = batch.column("score").flatten().to_numpy().reshape(len(batch), -1)
                    for name, mean in zip(
                        batch.column("sample_key").to_pylist(), score_KV.mean(1), strict=True
                    ):
                        sums[name].append(float(mean))
            yield from ((float(np.mean(values)), number, name) for name, values in sums.items())

    pick = heapq.nlargest if highest else heapq.nsmallest
    by_shard: dict[int, set[str]] = defaultdict(set)
    for _, number, name in pick(count, means()):
        by_shard[number].add(name)
    return [(shards[number], names) for number, names in by_shard.items()]


def _images(
    tables: ScoreTables,
    paths: Mapping[str, str],
    shard: Shard,
    wanted: Collection[str] | int,
    photos: Photos | None,
) -> list[Pictured]:
    """The wanted samples of a shard: those of some keys, or the first so many."""
    rows: dict[str, list[Row]] = {}
    for file in shard:
        for row in _rows(file):
            name = row["sample_key"]
            if isinstance(wanted, int):
                # The views of a sample follow each other.
                if name not in rows and len(rows) == wanted:
                    break
            elif name not in wanted:
                continue
            rows.setdefault(name, []).append(row)
        if isinstance(wanted, int):
            wanted = set(rows)
    one_crop = {name: _of_one_crop(found) for name, found in rows.items()}
    cut: dict[str, Pixels] = {}
    if photos is not None:
        boxes = {name: _box(found[0]) for name, found in one_crop.items()}
        side, file = tables.teacher["grid"] * tables.teacher["patch_size"], shard[0]
        cut = photos.cut(file.shard, boxes, size=side, shard_bytes=file.size, of=file.url)
    path = next(told for url, told in paths.items() if f"{shard[0].url}/".startswith(f"{url.rstrip('/')}/"))
    return [
        _pictured(tables, path, shard[0], name, found, len(rows[name]), cut.get(name))
        for name, found in one_crop.items()
    ]


def _rows(file: TableFile) -> Iterator[Row]:
    pixels = [name for name in ("patches", "pixels") if name in file.columns]
    columns = ["sample_key", "view", *_BOX, "visible", "score", *pixels]
    for batch in table_batches(file.url, columns, batch_rows=_ROWS_READ):
        for row in batch.to_pylist():
            if not all(0 <= place < file.grid**2 for place in row["visible"]):
                raise DamagedFileError(f"{file.url}: a row names positions that its grid does not have")
            yield row


def _of_one_crop(rows: list[Row]) -> list[Row]:
    """All views of a centre crop; of random crops the first alone, since each shows another part."""
    rows = sorted(rows, key=lambda row: row["view"])
    return rows if len({_box(row) for row in rows}) == 1 else rows[:1]


def _box(row: Row) -> ViewBox:
    return ViewBox(*(row[name] for name in _BOX))


def _pictured(
    tables: ScoreTables,
    path: str,
    file: TableFile,
    key: str,
    rows: list[Row],
    views: int,
    photo: Pixels | None,
) -> Pictured:
    grid, patch_size = file.grid, tables.teacher["patch_size"]
    visible_KV = np.array([row["visible"] for row in rows], np.int64)
    score_KV = np.array([row["score"] for row in rows], np.float32)
    pixels, shown_L = _pixels(rows, grid, patch_size)
    if photo is not None:
        pixels, shown_L = photo, np.ones(grid**2, np.bool_)
    dense_L = dense(visible_KV, score_KV, grid**2)
    whole = not bool(np.isnan(dense_L).any())
    views_shown = f"{views} views" if len(rows) == views else f"the first of {views} views"
    return Pictured(
        origin="table",
        path=path,
        key=key,
        shard=file.shard,
        detail=views_shown,
        pixels=pixels,
        shown=shown_L,
        teacher=dense_L,
        halves=_halves(visible_KV, score_KV, grid**2) if whole else None,
        mean_score=float(score_KV.mean()),
        whole=whole,
    )


def dense(visible_KV: NDArray[np.int64], score_KV: Scores, positions: int) -> Scores:
    """`dense_scores`, with NaN where they are no numbers."""
    found_L = dense_scores(visible_KV, score_KV, positions)
    return np.where(np.isfinite(found_L), found_L, np.nan).astype(np.float32)


def _halves(visible_KV: NDArray[np.int64], score_KV: Scores, positions: int) -> Scores | None:
    """Scores from the first and from the last half of the views; None where one of them does not cover the grid."""
    half = len(visible_KV) // 2
    if not half:
        return None
    parts_2L = np.stack(
        [dense(visible_KV[part], score_KV[part], positions) for part in (slice(half), slice(half, 2 * half))]
    )
    return None if np.isnan(parts_2L).any() else parts_2L


def _pixels(rows: list[Row], grid: int, patch_size: int) -> tuple[Pixels, NDArray[np.bool_]]:
    """What the table holds of the pixels, and of which patches."""
    shape = (grid**2, patch_size**2 * 3)
    if "pixels" in rows[0]:
        try:
            view = as_picture(decode_view(rows[0]["pixels"]))
        except ContentError as error:
            raise UserError(f"the stored view of {rows[0]['sample_key']!r} cannot be read: {error}") from None
        if view.shape == (grid * patch_size, grid * patch_size, 3):
            return view, np.ones(grid**2, np.bool_)
    patches_LP, shown_L = np.full(shape, HIDDEN_GRAY, np.uint8), np.zeros(grid**2, np.bool_)
    for row in itertools.takewhile(lambda row: "patches" in row, rows):
        patches_LP[row["visible"]] = np.frombuffer(row["patches"], np.uint8).reshape(-1, shape[1])
        shown_L[row["visible"]] = True
    return as_picture(unpatchify(torch.from_numpy(patches_LP)[None], patch_size)), shown_L
