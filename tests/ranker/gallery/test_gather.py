"""Images out of tables, shards and pruned sets: pixels in their places, scores of who gave them, what would stay."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import patchsieve
from patchsieve.pipeline.errors import DamagedFileError, UserError
from patchsieve.ranker.gallery.evenly import evenly
from patchsieve.ranker.gallery.gather import gather, open_ranker
from patchsieve.ranker.gallery.photos import Photos
from patchsieve.ranker.gallery.pictured import Pictured
from patchsieve.ranker.gallery.sources import find_sources
from patchsieve.ranker.select.selection import topk
from tests.helpers.archives import apart
from tests.helpers.galleries import PHOTOS, Left
from tests.helpers.photos import photo


def images_of(
    *paths: str, ranker: str | None = None, photos: str | None = None, **asked: object
) -> list[Pictured]:
    return gather(
        find_sources(paths),
        **{"count": 100, **asked},
        ranker=None if ranker is None else open_ranker(ranker),
        photos=None if photos is None else Photos([photos], root=None),
    )


def test_what_a_path_holds(left: Left) -> None:
    paths = [
        left.table,
        f"{left.table}/scores",
        left.ranker,
        left.pruned,
        left.shards,
        "tiny",
        "baseline:edge",
        "a/*.tar",
    ]
    kinds = [source.kind for source in find_sources(paths)]
    assert kinds == ["table", "table", "ranker", "pruned", "shards", "ranker", "ranker", "shards"]


def test_a_path_that_holds_nothing_of_ours(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is none of what can be shown"):
        find_sources([str(tmp_path)])


def test_a_table_gives_the_photos_that_it_holds_and_those_of_its_shards(left: Left) -> None:
    stored = images_of(left.table)
    photos = images_of(left.table, photos=left.shards)
    assert len(stored) == PHOTOS
    for one, other in zip(stored, photos, strict=True):
        assert one.shown.all()
        assert (one.pixels == other.pixels).all()


def test_ranker_and_teacher_are_those_of_the_public_calls(left: Left) -> None:
    (image,) = images_of(left.table, ranker=left.ranker, key="photo-3")
    ranker = patchsieve.load_ranker(left.ranker, device="cpu")
    alone = patchsieve.rank_images([photo(3, 60, 80)], ranker)[0]
    rows = patchsieve.read_scores(left.table).to_pylist()
    mine = [row for row in rows if row["sample_key"] == "photo-3"]
    dense = patchsieve.dense_scores(
        np.array([row["visible"] for row in mine]), np.array([row["score"] for row in mine], np.float32), 36
    )
    np.testing.assert_allclose(image.ranker, alone, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(image.teacher, dense)


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75, 1.0])
def test_what_stays_is_what_prune_keeps(left: Left, ratio: float) -> None:
    for image in images_of(left.table, ranker=left.ranker):
        assert image.ranker is not None
        expected = topk(image.ranker[None], max(1, int(36 * ratio + 1e-6)))[0]
        assert (image.kept(ratio) == expected).all()


def test_views_of_random_crops_show_the_first_and_rank_what_it_shows(left: Left) -> None:
    for image in images_of(left.views, ranker=left.ranker):
        assert image.shown.sum() == 9
        assert (~np.isnan(image.teacher) == image.shown).all()
        assert (~np.isnan(image.ranker) == image.shown).all()
        assert image.kept(0.5).sum() == 4
        assert not (image.kept(0.5) & ~image.shown).any()


def test_a_pruned_set_shows_what_it_keeps(left: Left) -> None:
    whole = {one.key: one for one in images_of(left.table, ranker=left.ranker)}
    for image in images_of(left.pruned):
        assert image.shown.sum() == 18
        assert (image.shown == whole[image.key].kept(0.5)).all()
        assert image.kept(0.25).sum() == 9
        assert not (image.kept(0.25) & ~whole[image.key].kept(0.25)).any()
        assert image.kept(1.0).sum() == 18


def test_a_pruned_set_shows_whole_photos_where_it_is_given_them(left: Left) -> None:
    whole = {one.key: one for one in images_of(left.table, photos=left.shards)}
    for image, kept in zip(images_of(left.pruned, photos=left.shards), images_of(left.pruned), strict=True):
        assert (image.pixels == whole[image.key].pixels).all()
        assert (image.shown == kept.shown).all()
        assert (image.kept(0.25) == kept.kept(0.25)).all()


def test_shards_alone_need_a_ranker(left: Left) -> None:
    assert len(images_of(left.shards, ranker=left.ranker, photos=left.shards)) == PHOTOS
    with pytest.raises(UserError, match="name a ranker"):
        images_of(left.shards, photos=left.shards)


def test_few_images_come_from_every_shard(left: Left) -> None:
    assert len({one.shard for one in images_of(left.table, count=2)}) == 2
    assert len({one.shard for one in images_of(left.pruned, count=2)}) == 2


def test_an_image_tells_which_of_the_paths_it_is_of(left: Left) -> None:
    scores = sorted(str(path) for path in Path(left.table, "scores").glob("*.parquet"))
    assert {one.path for one in images_of(*scores)} == set(scores)


@pytest.mark.parametrize(
    ("count", "expected"), [(2, "ac"), (5, "abccd"), (9, "abbbccddd"), (20, "abbbbbccdddd")]
)
def test_what_a_small_shard_lacks_the_others_give(count: int, expected: str) -> None:
    held = {"a": 1, "b": 5, "c": 2, "d": 4}
    taken = evenly(
        [*held], count, lambda shard, share: [shard] * min(share, held[shard]), size=lambda s: held[s]
    )
    assert "".join(taken) == expected


def test_highest_and_lowest_scores(left: Left) -> None:
    means = sorted(one.mean_score or 0.0 for one in images_of(left.table))
    assert [one.mean_score for one in images_of(left.table, count=2, order="top")] == means[:-3:-1]
    assert [one.mean_score for one in images_of(left.table, count=2, order="bottom")] == means[:2]


def test_a_key_that_is_not_there(left: Left) -> None:
    for path in (left.table, left.pruned):
        with pytest.raises(UserError, match="'photo-99'"):
            images_of(path, key="photo-99")


def test_photos_that_lie_apart_from_their_labels(left: Left, tmp_path: Path) -> None:
    path = apart(Path(left.shards) / "1.tar", tmp_path / "1.tar")
    for unsorted in (False, True):
        photos = Photos([str(path)], root=None, unsorted=unsorted)
        found = [key for key, _ in photos.images(photos.shards[0])]
        assert (len(found) == PHOTOS // 2) == unsorted


def no_numbers(table: pa.Table) -> pa.Table:
    return table.set_column(table.schema.names.index("kept"), "kept", pa.array(["many"] * len(table)))


def another_grid(table: pa.Table) -> pa.Table:
    return table.set_column(
        table.schema.names.index("grid"), "grid", pa.array([30_000] * len(table), pa.int16())
    )


def fewer_scores(table: pa.Table) -> pa.Table:
    one = pa.array([[0.5]] * len(table), pa.list_(pa.float32()))
    return table.set_column(table.schema.names.index("scores"), "scores", one)


def crop_elsewhere(table: pa.Table) -> pa.Table:
    return table.set_column(
        table.schema.names.index("crop_left"), "crop_left", pa.array([10**6] * len(table), pa.int32())
    )


def no_crop(table: pa.Table) -> pa.Table:
    return table.set_column(
        table.schema.names.index("crop_left"), "crop_left", pa.nulls(len(table), pa.int32())
    )


@pytest.mark.parametrize("spoil", [no_numbers, another_grid, fewer_scores, crop_elsewhere, no_crop])
def test_an_index_that_is_not_what_it_should_be_is_named(
    left: Left, tmp_path: Path, spoil: Callable[[pa.Table], pa.Table]
) -> None:
    out = Path(shutil.copytree(left.pruned, tmp_path / "pruned"))
    for index in (out / "index").iterdir():
        table = pq.read_table(index)
        pq.write_table(spoil(table).replace_schema_metadata(pq.read_metadata(index).metadata), index)
    with pytest.raises(DamagedFileError, match=r"index/.*parquet is damaged"):
        images_of(str(out), photos=left.shards)
