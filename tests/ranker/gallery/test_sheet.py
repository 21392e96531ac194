"""`patchsieve sheet`: a picture of what a path holds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import patchsieve
from patchsieve.jobs import sheet as job
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.pictures.contact_sheet import only_patches
from patchsieve.pipeline.pictures.sheet import heat_over
from patchsieve.ranker.gallery.config import SheetConfig
from patchsieve.ranker.gallery.gather import gather
from patchsieve.ranker.gallery.sheet import _sheet, draw, draw_sheet
from patchsieve.ranker.gallery.sources import find_sources
from tests.helpers.galleries import HOSTILE, PHOTOS, Left
from tests.helpers.photos import photo
from tests.helpers.prune_runs import prune_config, prune_here


def rows_of(picture: np.ndarray) -> int:
    return round((picture.shape[0] - 230) / 254)


def test_it_draws_tables_pruned_sets_and_shards(left: Left) -> None:
    table = draw(SheetConfig(path=left.table, ranker=left.ranker))
    pruned = draw(SheetConfig(path=left.pruned))
    shards = draw(SheetConfig(path=left.shards, ranker=left.ranker, top=None))
    assert [rows_of(one) for one in (table, pruned, shards)] == [PHOTOS] * 3
    # Photo, teacher, ranker, kept; photo, ranker, kept.
    assert table.shape[1] - pruned.shape[1] == 234
    assert shards.shape == pruned.shape


def test_of_a_pruned_set_it_draws_what_stays(left: Left, tmp_path: Path) -> None:
    prune_here(prune_config([left.shards], tmp_path / "out", left.ranker, keep=0.75))
    config = SheetConfig(path=str(tmp_path / "out"))
    images = gather(find_sources([config.path]), count=PHOTOS, ranker=None, photos=None)
    sheet = _sheet(images, config, "out")
    assert (sheet.columns[-1].title, sheet.columns[-1].detail) == (
        "What stays",
        "75.0% of the patches, by ranker",
    )
    for one, row in zip(images, sheet.rows, strict=True):
        assert one.shown.sum() == 27
        assert np.array_equal(row.tiles[-1], only_patches(row.tiles[0], one.shown))
    asked = _sheet(images, dataclasses.replace(config, keep=0.25), "out")
    assert (asked.columns[-1].title, asked.columns[-1].detail[:5]) == ("Keep 0.25", "25.0%")


def test_one_key_and_a_few_of_the_highest(
    left: Left, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "one.png"
    assert job.run(SheetConfig(path=left.table, key=HOSTILE, out=str(out))) == 0
    assert "--images" not in capsys.readouterr().out
    assert job.run(SheetConfig(path=left.views, key=HOSTILE, out=str(out))) == 0
    assert "--images SHARDS shows all" in capsys.readouterr().out
    assert rows_of(np.asarray(Image.open(out))) == 1
    assert rows_of(np.asarray(draw_sheet(left.table, top=2))) == 2
    with pytest.raises(UserError, match=r"there is no setting 'topp'\. Did you mean top"):
        draw_sheet(left.table, topp=2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"key": "a", "top": 3}, "give one of them"),
        ({"top": 0}, "--top is 0"),
        ({"bottom": 1000}, "at most 100 rows"),
        ({"keep": 1.5}, "--keep is 1.5"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        SheetConfig(path="table", **changes)


def test_paths_that_cannot_be_drawn(left: Left) -> None:
    for path, changes, words in (
        (left.ranker, {}, "is a ranker"),
        (left.pruned, {"ranker": "tiny"}, "holds the scores"),
        (left.shards, {"ranker": left.ranker, "top": 2}, "leave out --top"),
        (left.shards, {"images": (left.shards,), "ranker": "tiny"}, "photos of a table"),
    ):
        with pytest.raises(UserError, match=words):
            draw(SheetConfig(path=path, **changes))


def test_heat_maps_for_notebooks(left: Left) -> None:
    picture = photo(1, 60, 80)
    ranker = patchsieve.load_ranker(left.ranker, device="cpu")
    ranks = patchsieve.rank_images([picture], ranker)[0]
    found = patchsieve.draw_heat_map(picture, ranks)
    assert found.size == (224, 224)
    (rank_place,) = np.flatnonzero(ranks == ranks.max())
    alone = np.asarray(patchsieve.draw_heat_map(picture, ranks, share=1.0, side=48)).sum(axis=2)
    row, column = divmod(int(rank_place), 6)
    assert alone[row * 8, column * 8] == alone.max()
    with pytest.raises(UserError, match="no square grid"):
        patchsieve.draw_heat_map(picture, ranks[:-1])


def test_a_heat_map_lies_over_the_photo_where_scores_are_known() -> None:
    photo = np.full((8, 8, 3), 100, np.uint8)
    found = heat_over(photo, np.array([[0.0, 1.0], [2.0, np.nan]], np.float32), share=1.0)
    assert (found[4:, 4:] == 100).all()
    assert found[0, 0].sum() < found[0, 4].sum() < found[4, 0].sum()
