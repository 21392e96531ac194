"""Training batches out of tables: what they hold, that they go on anywhere, mirror images, memory, refusals."""

from __future__ import annotations

import pickle
import threading
from collections import Counter
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
import torch

from patchsieve.pipeline.errors import InfrastructureError, UserError
from patchsieve.pipeline.images.patches import patchify
from patchsieve.pipeline.tables.reader import ScoreTables, TableFile
from patchsieve.ranker.batches.batch import Batch, mirror, mirror_patches, mirror_positions
from patchsieve.ranker.batches.index import Context, TableIndex, index_tables
from patchsieve.ranker.batches.order import held_out
from patchsieve.ranker.batches.rows import held_out_batches
from patchsieve.ranker.batches.stream import TableBatches
from patchsieve.ranker.batches.table_file import PixelSource, open_table
from tests.helpers.pixel_tables import (
    GRID,
    PATCH,
    VISIBLE,
    image_of,
    make_row,
    view_jpeg,
    view_pixels,
    write_pixel_table,
)

SHARE = 0.25


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tables")
    for store in ("patches", "view"):
        write_pixel_table(root / store / "scores/a.parquet", images=range(20), store=store)
        write_pixel_table(root / store / "scores/b.parquet", images=range(20, 33), store=store, group_rows=5)
    return root


def an_index(source: Path | str, context: Context = "visible", share: float = SHARE) -> TableIndex:
    return index_tables(ScoreTables(str(source)), context=context, held_out_share=share, seed=1)


def read(batches: TableBatches, epoch: int = 0, step: int = 0, epochs: int | None = 1) -> list[Batch]:
    with batches.stream(epoch=epoch, step=step, epochs=epochs) as stream:
        return list(stream)


def same(one: Batch, other: Batch) -> bool:
    tensors = all(
        torch.equal(getattr(one, name), getattr(other, name)) for name in ("patches", "positions", "scores")
    )
    return tensors and all(
        getattr(one, name) == getattr(other, name) for name in ("epoch", "step", "sample_keys", "views")
    )


def running_threads() -> list[str]:
    """Names of the threads that read tables now."""
    ours = ("training batches", "table windows", "decode views")
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(ours)]


def rows_of(batches: list[Batch]) -> Counter[tuple[str, int]]:
    return Counter(pair for b in batches for pair in zip(b.sample_keys, b.views, strict=True))


@pytest.mark.parametrize(
    ("store", "context"), [("patches", "visible"), ("view", "visible"), ("view", "full")]
)
def test_batches_hold_what_the_teacher_saw(folder: Path, store: str, context: Context) -> None:
    batches = read(TableBatches(an_index(folder / store, context), batch_size=9, seed=0, decode_threads=2))
    for step, batch in enumerate(batches):
        assert (batch.epoch, batch.step, len(batch)) == (0, step, 9)
        assert batch.patches.shape == (9, VISIBLE if context == "visible" else GRID**2, PATCH**2 * 3)
        assert (batch.patches.dtype, batch.positions.dtype, batch.scores.dtype) == (
            torch.uint8,
            torch.int64,
            torch.float32,
        )
        for i, (key, view) in enumerate(zip(batch.sample_keys, batch.views, strict=True)):
            row = make_row(image_of(key), view, "none")
            whole = patchify(view_pixels(image_of(key), view)[None], PATCH)[0]
            assert batch.positions[i].tolist() == row.visible.tolist()
            assert batch.scores[i].tolist() == row.score.tolist()
            expected = whole if context == "full" else whole[batch.positions[i]]
            assert torch.equal(batch.patches[i], expected)


def test_ranks_share_an_epoch_and_leave_held_out_images_alone(folder: Path) -> None:
    index = an_index(folder / "patches")
    outside = {f"image-{i:04d}" for i in range(33) if held_out(f"image-{i:04d}", SHARE, 1)}
    assert index.held_out_rows.sum() == 2 * len(outside) > 4
    ranks = [TableBatches(index, batch_size=4, seed=3, rank=r, ranks=3, window_bytes=9000) for r in range(3)]
    given = [read(rank) for rank in ranks]
    assert [len(batches) for batches in given] == [ranks[0].batches_per_epoch] * 3
    counts = rows_of([batch for batches in given for batch in batches])
    assert set(counts.values()) == {1}
    assert not {key for key, _ in counts} & outside
    assert index.train_rows.sum() - len(counts) < 3 * 4

    held = [
        batch
        for number in range(len(index.held_out_rows))
        for batch in held_out_batches(index, number, batch_size=3)
    ]
    assert rows_of(held) == Counter({(key, view): 1 for key in outside for view in range(2)})


@pytest.mark.parametrize(("store", "context"), [("patches", "visible"), ("view", "full")])
def test_a_stream_goes_on_from_any_step(folder: Path, store: str, context: Context) -> None:
    # The index goes to other processes as a pickle.
    index: TableIndex = pickle.loads(pickle.dumps(an_index(folder / store, context)))

    def batches() -> TableBatches:
        return TableBatches(index, batch_size=4, seed=3, rank=1, ranks=2, flip=True, window_bytes=9000)

    whole = read(batches(), epochs=3)
    count = batches().batches_per_epoch
    assert [(b.epoch, b.step) for b in whole] == [(e, s) for e in range(3) for s in range(count)]
    assert rows_of(whole[:count]) != rows_of(whole[count : 2 * count])
    for place in (1, count - 1, count, count + 2, 3 * count - 1):
        rest = read(batches(), place // count, place % count, epochs=3)
        assert len(rest) == len(whole) - place
        assert all(map(same, rest, whole[place:]))
    assert all(map(same, read(batches(), 0, count, epochs=2), whole[count : 2 * count]))


def test_going_on_reads_no_more_than_the_window_it_is_in(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = TableBatches(an_index(folder / "patches"), batch_size=4, seed=3, window_bytes=1)
    opened: list[str] = []

    def counted(file: TableFile, source: PixelSource) -> AbstractContextManager[Any]:
        opened.append(file.url)
        return open_table(file, source)

    monkeypatch.setattr("patchsieve.ranker.batches.rows.open_table", counted)
    last = read(batches, 0, batches.batches_per_epoch - 1)
    assert len(last) == 1
    assert 1 <= len(opened) <= 2


def test_mirrored_rows_are_cut_from_the_mirrored_view(folder: Path) -> None:
    for store, context in (("patches", "visible"), ("view", "full")):
        index = an_index(folder / store, context)
        plain = read(TableBatches(index, batch_size=16, seed=0))
        flipped = read(TableBatches(index, batch_size=16, seed=0, flip=True))
        turned = 0
        for one, other in zip(plain, flipped, strict=True):
            assert (one.sample_keys, one.views) == (other.sample_keys, other.views)
            assert torch.equal(one.scores, other.scores)
            for i, (key, view) in enumerate(zip(one.sample_keys, one.views, strict=True)):
                if torch.equal(one.positions[i], other.positions[i]):
                    assert torch.equal(one.patches[i], other.patches[i])
                    continue
                turned += 1
                whole = patchify(view_pixels(image_of(key), view).flip(2)[None], PATCH)[0]
                expected = whole if context == "full" else whole[other.positions[i]]
                assert torch.equal(other.patches[i], expected)
                # The patch of a score is the same picture part, at its mirrored place.
                rows, columns = one.positions[i] // GRID, one.positions[i] % GRID
                assert torch.equal(other.positions[i], rows * GRID + (GRID - 1 - columns))
        assert 8 < turned < 16 * len(plain) - 8
        batch, all_of_it = plain[0], torch.ones(16, dtype=torch.bool)
        once = mirror(batch, all_of_it, grid=GRID, patch_size=PATCH)
        assert not torch.equal(once.patches, batch.patches)
        assert same(mirror(once, all_of_it, grid=GRID, patch_size=PATCH), batch)


def test_mirroring_by_hand() -> None:
    assert mirror_positions(torch.tensor([[0, 1, 2], [3, 4, 8]]), 3).tolist() == [[2, 1, 0], [5, 4, 6]]
    patch = torch.arange(12).reshape(1, 1, 12)  # 2 x 2 pixels of 3 channels
    assert mirror_patches(patch, 2).flatten().tolist() == [3, 4, 5, 0, 1, 2, 9, 10, 11, 6, 7, 8]


def test_memory_does_not_grow_with_the_table(tmp_path: Path) -> None:
    window = 65_000
    source = write_pixel_table(tmp_path / "a.parquet", images=range(100), views=8, group_rows=32)
    index = an_index(source)
    assert index.sizes.sum() > 10 * window
    before, highest = pa.total_allocated_bytes(), 0
    with TableBatches(index, batch_size=16, seed=0, window_bytes=window).stream(epochs=2) as stream:
        for _ in stream:
            highest = max(highest, pa.total_allocated_bytes() - before)
    # Two windows, and one row group as it is read: stored, compressed, as pages.
    assert highest < 5 * window


def test_any_store_and_shared_views_of_one_crop(tmp_path: Path) -> None:
    jpegs = {i: {"pixels": make_row(i // 4, 0, "view").pixels} for i in range(24)}
    local = write_pixel_table(
        tmp_path / "a.parquet", images=range(6), views=4, store="view", group_rows=24, changed=jpegs
    )
    with fsspec.open("memory://train/a.parquet", "wb") as file:
        file.write(Path(local).read_bytes())
    index = an_index("memory://train/a.parquet", "full", 0.0)
    # The four views of an image share a JPEG, in the file and in the account of memory.
    assert index.sizes.sum() < 0.5 * sum(len(row["pixels"] or b"") for row in jpegs.values())
    batches = read(TableBatches(index, batch_size=8, seed=0))
    for batch in batches:
        for patches, key in zip(batch.patches, batch.sample_keys, strict=True):
            assert torch.equal(patches, patchify(view_pixels(image_of(key), 0)[None], PATCH)[0])
    assert an_index(local, "full", 0.0).digest == index.digest
    assert an_index(local, "visible", 0.0).digest != index.digest


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_named(tmp_path: Path, value: float) -> None:
    scores = np.array([1, 2, value, 4, 5], dtype=np.float32)
    path = write_pixel_table(tmp_path / "a.parquet", images=range(10), changed={13: {"score": scores}})
    with pytest.raises(UserError, match=rf"a\.parquet row 13 has a score .* \({value}\)"):
        an_index(path)


def test_tables_that_cannot_train_are_refused(tmp_path: Path, folder: Path) -> None:
    empty = write_pixel_table(tmp_path / "empty.parquet", images=range(0))
    with pytest.raises(UserError, match=r"no rows to train on: .*empty\.parquet is empty"):
        an_index(empty)
    with pytest.raises(UserError, match=r"a\.parquet has no column `pixels`: context full .*--store view"):
        an_index(folder / "patches", "full")
    bare = write_pixel_table(tmp_path / "bare.parquet", images=range(4), store="none")
    with pytest.raises(UserError, match=r"no column `patches` or `pixels`.*--store patches or --store view"):
        an_index(bare)
    few = write_pixel_table(tmp_path / "few.parquet", images=range(4))
    with pytest.raises(UserError, match=r"hold 8 rows .* one batch of 5 for each of 2 .*--batch-size 4\)"):
        TableBatches(an_index(few, share=0.0), batch_size=5, seed=0, ranks=2)
    assert TableBatches(an_index(few, share=0.0), batch_size=4, seed=0, ranks=2).batches_per_epoch == 1
    with pytest.raises(ValueError, match="no step 3 of epoch 0"):
        TableBatches(an_index(few, share=0.0), batch_size=4, seed=0).stream(step=3)
    with pytest.raises(ValueError, match=r"share of 1\.0"):
        an_index(few, share=1.0)


def test_stored_views_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    for data, told in (
        (b"no image", "not an image"),
        (view_jpeg(0, 0)[:-200], "JPEG|jpeg|Premature|truncated"),
    ):
        path = write_pixel_table(
            tmp_path / "a.parquet", images=range(4), store="view", group_rows=3, changed={5: {"pixels": data}}
        )
        batches = TableBatches(an_index(path, "full", 0.0), batch_size=4, seed=0)
        with pytest.raises(UserError, match=rf"a\.parquet row 5: .*({told})"):
            read(batches)
    assert not running_threads()


def test_a_table_that_changes_meanwhile_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_pixel_table(path, images=range(8))
    batches = TableBatches(an_index(path), batch_size=4, seed=0)
    write_pixel_table(path, images=range(20, 24), group_rows=2)
    with pytest.raises(InfrastructureError, match=r"a\.parquet changed since training was planned"):
        read(batches)
    path.unlink()
    with pytest.raises(UserError, match=r"a\.parquet is gone"):
        read(batches)
    path.write_bytes(b"PAR1 but no table")
    with pytest.raises(UserError, match=r"a\.parquet is damaged"):
        read(batches)


def test_leaving_a_stream_early_stops_its_threads(folder: Path) -> None:
    batches = TableBatches(an_index(folder / "view", "full"), batch_size=4, seed=0, window_bytes=1)
    with batches.stream() as stream:
        assert next(stream).epoch == 0
        assert "training batches" in running_threads()
    assert not running_threads()
