"""What a training is measured on: whole images where tables show all of them, else visible patches."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from patchsieve.pipeline.images.patches import patchify
from patchsieve.pipeline.row_config import Store
from patchsieve.pipeline.tables.reader import ScoreTables
from patchsieve.ranker.batches.index import Context, TableIndex, index_tables
from patchsieve.ranker.batches.order import held_out
from patchsieve.ranker.learning.agreement import spearman
from patchsieve.ranker.learning.training import Training
from patchsieve.ranker.learning.validation import Measured, Validation
from patchsieve.ranker.learning.validation_plan import plan_validation, row_settings
from tests.helpers.partition_tables import PARTITION, true_scores, write_partition_table
from tests.helpers.pixel_tables import GRID, PATCH, SIDE, VISIBLE, view_pixels, write_pixel_table
from tests.helpers.rankers import small_ranker
from tests.ranker.learning.test_training import CPU, RECIPE

SHARE = 0.4
IMAGES = range(12)
OUTSIDE = [i for i in IMAGES if held_out(f"image-{i:04d}", SHARE, 0)]


def an_index(*tables: str, context: Context = "visible") -> TableIndex:
    return index_tables(ScoreTables(list(tables)), context=context, held_out_share=SHARE)


def a_training(context: Context = "visible") -> Training:
    ranker = small_ranker(image_size=SIDE, patch_size=PATCH, depth=1, head="token")
    return Training(ranker, RECIPE, device=CPU, half=None, full=context == "full")


def whole(index: TableIndex, *, ranks: int = 1) -> list[Measured]:
    plan = plan_validation(index)
    assert plan.kind == "whole images"
    training = a_training(index.context)
    return [Validation(plan, index, rank=rank, ranks=ranks).measure(training) for rank in range(ranks)]


def rows(measured: list[Measured]) -> list[tuple[bytes, bytes]]:
    pairs = [pair for part in measured for pair in zip(part.scores, part.targets, strict=True)]
    return sorted((np.round(scores, 4).tobytes(), targets.tobytes()) for scores, targets in pairs)


@pytest.mark.parametrize(
    ("store", "context"), [("patches", "visible"), ("view", "visible"), ("view", "full")]
)
def test_whole_images_are_put_together_from_partitions(
    tmp_path: Path, store: Store, context: Context
) -> None:
    assert 3 < len(OUTSIDE) < 9
    table = write_partition_table(tmp_path / "a.parquet", images=IMAGES, store=store, group_rows=7)
    (measured,) = whole(an_index(table, context=context))
    pixels = torch.stack([patchify(view_pixels(image, 0)[None], PATCH)[0] for image in OUTSIDE])
    scores = a_training().predict(pixels).numpy()
    targets = np.log(np.stack([true_scores(image) for image in OUTSIDE]))
    np.testing.assert_allclose(measured.scores, scores, atol=1e-5)
    np.testing.assert_allclose(measured.targets, targets, rtol=1e-6)
    assert measured.agreement == pytest.approx(float(spearman(scores, targets).mean()))


def test_views_in_several_tables_and_workers_make_the_same_images(tmp_path: Path) -> None:
    one = write_partition_table(tmp_path / "one.parquet", images=IMAGES, group_rows=7)
    halves = []
    for first in (0, 2):
        # One shard content, in tables of different views.
        path = tmp_path / f"{first}" / "half.parquet"
        halves.append(write_partition_table(path, images=IMAGES, views=2, first_view=first))
    expected = rows(whole(an_index(one)))
    assert len(expected) == len(OUTSIDE)
    assert rows(whole(an_index(*halves))) == expected
    assert rows(whole(an_index(one), ranks=3)) == expected
    # Half a partition shows only parts of images.
    assert plan_validation(an_index(halves[0])).kind == "visible patches"


def test_visible_patches_are_measured_as_views(tmp_path: Path) -> None:
    table = write_pixel_table(tmp_path / "a.parquet", images=IMAGES, views=3)
    index = an_index(table)
    plan = plan_validation(index)
    assert (plan.kind, plan.rows) == ("visible patches", 3 * len(OUTSIDE))
    parts = [Validation(plan, index, rank=rank, ranks=2).measure(a_training()) for rank in (0, 1)]
    assert sum(len(part.scores) for part in parts) == plan.rows
    assert parts[0].scores.shape[1] == VISIBLE
    (alone,) = [Validation(plan, index).measure(a_training())]
    assert rows(parts) == rows([alone])


def test_whole_views_are_read_where_the_patches_lie(tmp_path: Path) -> None:
    index = an_index(write_pixel_table(tmp_path / "a.parquet", images=IMAGES, store="view"), context="full")
    plan = plan_validation(index)
    assert plan.kind == "visible patches"
    training = a_training("full")
    measured = Validation(plan, index).measure(training)
    first = patchify(view_pixels(OUTSIDE[0], 0)[None], PATCH)
    expected = training.predict(first).numpy()[0]
    assert set(np.round(measured.scores[0], 4)) <= set(np.round(expected, 4))


def test_what_is_measured_is_bounded_and_follows_the_seed(tmp_path: Path) -> None:
    index = an_index(write_pixel_table(tmp_path / "a.parquet", images=range(80), group_rows=8))
    every = plan_validation(index)
    row_bytes = VISIBLE * PATCH * PATCH * 3
    few = plan_validation(index, limit=10 * row_bytes)
    assert every.rows == index.held_out_rows.sum() > 40
    assert 10 <= few.rows < 10 + 8
    assert few.slices.tolist() == plan_validation(index, limit=10 * row_bytes).slices.tolist()
    other = plan_validation(dataclasses.replace(index, seed=5), limit=10 * row_bytes)
    assert few.slices.tolist() != other.slices.tolist()


def test_decibels_are_averaged_as_they_are(tmp_path: Path) -> None:
    table = write_pixel_table(
        tmp_path / "a.parquet", images=IMAGES, settings={"metric": "psnr", "crop": "center"}
    )
    assert plan_validation(an_index(table)).aggregate == "mean"


def test_an_order_that_is_none_has_no_agreement() -> None:
    flat = np.ones((3, 4), dtype=np.float32)
    told = Measured(kind="visible patches", aggregate="log", scores=flat, targets=flat)
    assert told.agreement is None
    ordered = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert dataclasses.replace(told, scores=ordered, targets=ordered).agreement == pytest.approx(1.0)


def test_temperature_of_whole_images_reads_logarithms() -> None:
    generator = np.random.default_rng(0)
    scores = generator.normal(size=(40, GRID**2)).astype(np.float32)
    # Scores of which a softmax at temperature 2 gives the shares.
    targets = (scores / 2).astype(np.float32)
    measured = Measured(kind="whole images", aggregate="log", scores=scores, targets=targets)
    assert measured.temperature() == pytest.approx(2.0, rel=1e-3)


def test_settings_in_which_tables_differ_are_listed(tmp_path: Path) -> None:
    tables = [
        write_pixel_table(tmp_path / "a.parquet", images=IMAGES),
        write_partition_table(tmp_path / "b.parquet", images=IMAGES, views=PARTITION),
    ]
    found = row_settings(ScoreTables(tables).files)
    assert found["crop"] == ["center", "random"]
    assert found["views"] == ["0:4", "0:2"]
    assert (found["masks"], found["mask_ratio"], found["metric"]) == ("uniform", 0.9, "l1")
