"""Dense scores out of a table of `score --crop center`: the same as scoring, and what is no such table."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.row_config import IMAGE_FIELDS
from patchsieve.pipeline.scoring.api import Teacher
from patchsieve.pipeline.shards.specs import expand_shards
from patchsieve.ranker.evaluate.dense import measure_dense
from patchsieve.ranker.evaluate.dense_table import read_dense
from patchsieve.ranker.evaluate.images import EvaluationImages, read_evaluation_images
from patchsieve.ranker.evaluate.partitions import PartitionScorer
from patchsieve.ranker.model.checkpoint import LoadedRanker
from tests.helpers.archives import apart
from tests.helpers.evaluations import RATIO, VIEWS, ranker_of, small_teacher
from tests.helpers.photos import photo_samples, write_shard
from tests.helpers.score_runs import save_small_teacher, score_config, score_here

IMAGES = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`a.tar` and `b.tar`, a teacher, and `scores-*`: tables of a.tar."""
    folder = tmp_path_factory.mktemp("dense")
    for number, name in enumerate("ab"):
        write_shard(folder / f"{name}.tar", photo_samples(IMAGES, seed=number, height=60, width=70))
    teacher = save_small_teacher(folder)
    center: dict[str, Any] = {"crop": "center", "masks": "spread", "mask_ratio": RATIO, "seed": 3}
    for name, settings in {
        "whole": {**center, "views": str(4 * VIEWS)},
        "later": {**center, "views": f"{4 * VIEWS}:{5 * VIEWS + 1}"},
        "short": {**center, "views": str(2 * VIEWS - 1)},
        "random": {**center, "crop": "random", "views": str(2 * VIEWS)},
        "seed": {**center, "seed": 4, "views": f"{5 * VIEWS}:{6 * VIEWS}"},
    }.items():
        score_here(score_config([folder / "a.tar"], folder / f"scores-{name}", teacher, **settings))
    return folder


@pytest.fixture(scope="module")
def teacher(folder: Path) -> Teacher:
    return small_teacher(folder)


@pytest.fixture(scope="module")
def ranker(folder: Path, teacher: Teacher) -> LoadedRanker:
    return ranker_of(folder / "ranker", teacher)


def images_of(folder: Path, ranker: LoadedRanker, *names: str, limit: int = 100) -> EvaluationImages:
    shards = expand_shards([str(folder / f"{name}.tar") for name in names])
    return read_evaluation_images(shards, ranker, image_field=IMAGE_FIELDS, limit=limit, held_out_only=False)


def test_a_table_gives_what_scoring_gives(folder: Path, ranker: LoadedRanker, teacher: Teacher) -> None:
    images = images_of(folder, ranker, "a", limit=3)
    assert len(images) == 3
    read = read_dense(str(folder / "scores-whole"), images, digest=teacher.file.digest, aggregate="log")
    scorer = PartitionScorer(teacher, mask_ratio=RATIO, seed=3, batch_size=4)
    scored = measure_dense(
        images, scorer, masks="spread", aggregate="log", reliability=0.999, max_partitions=4
    )
    assert read.keys == scored.keys == images.keys
    np.testing.assert_allclose(read.dense, scored.dense, atol=1e-4)
    np.testing.assert_allclose(read.halves, scored.halves, atol=1e-4)
    assert read.rho == pytest.approx(scored.rho, abs=1e-3)
    expected = dataclasses.replace(scored.how, source=str(folder / "scores-whole"))
    assert read.how == expected


def test_the_aggregate_is_chosen_and_said(folder: Path, ranker: LoadedRanker, teacher: Teacher) -> None:
    images = images_of(folder, ranker, "a")
    how = read_dense(str(folder / "scores-whole"), images, digest=teacher.file.digest).how
    assert how.same_noise
    assert how.choice_images == IMAGES
    assert how.choice is not None
    row = how.choice.table["spread"]
    assert row[how.aggregate] == max(row.values())


def test_images_without_rows_are_left_out(folder: Path, ranker: LoadedRanker, teacher: Teacher) -> None:
    images = images_of(folder, ranker, "a", "b")
    assert len(images) == 2 * IMAGES
    dense = read_dense(str(folder / "scores-whole"), images, digest=teacher.file.digest)
    assert dense.keys == images.keys[:IMAGES]
    assert len(dense.patches) == IMAGES


@pytest.mark.parametrize(
    ("source", "shard", "line"),
    [
        ("random", "a", "holds crops of crop random: score with --crop center"),
        ("short", "a", "has no two partitions of the grid: score with --views 8 or more, in steps of 4"),
        # Views 16 to 20: one partition and a bit.
        ("later", "a", "has no two partitions of the grid"),
        ("whole", "b", "holds no table of these shards: none has their content"),
    ],
)
def test_what_is_no_table_of_partitions(
    source: str, shard: str, line: str, folder: Path, ranker: LoadedRanker, teacher: Teacher
) -> None:
    images = images_of(folder, ranker, shard)
    with pytest.raises(UserError, match=line):
        read_dense(str(folder / f"scores-{source}"), images, digest=teacher.file.digest)


def test_tables_of_another_teacher_or_setting(
    folder: Path, ranker: LoadedRanker, teacher: Teacher, tmp_path: Path
) -> None:
    images = images_of(folder, ranker, "a")
    with pytest.raises(UserError, match=r"was scored by small .*, the ranker learned from ffff"):
        read_dense(str(folder / "scores-whole"), images, digest="f" * 64)
    for name in ("whole", "seed"):
        (found,) = (folder / f"scores-{name}" / "scores").glob("*.parquet")
        (tmp_path / f"{name}.parquet").write_bytes(found.read_bytes())
    with pytest.raises(UserError, match=r"tables differ in seed: [34] and [34]; give those of one"):
        read_dense(str(tmp_path), images, digest=teacher.file.digest)


def test_images_of_samples_that_lie_apart(folder: Path, ranker: LoadedRanker, tmp_path: Path) -> None:
    tidy = images_of(folder, ranker, "a")
    path = apart(folder / "a.tar", tmp_path / "a.tar")
    options: dict[str, Any] = {"image_field": IMAGE_FIELDS, "limit": 100, "held_out_only": False}
    found = read_evaluation_images(expand_shards([str(path)]), ranker, **options, unsorted=True)
    assert sorted(found.keys) == sorted(tidy.keys)
    fewer = read_evaluation_images(expand_shards([str(path)]), ranker, **options)
    assert (fewer.unreadable > 0, len(fewer) < len(tidy)) == (True, True)
