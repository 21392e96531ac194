"""Which whole images stay: scores from tables, the threshold, tables that fit, and what becomes of a shard."""

from __future__ import annotations

import dataclasses
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from webdataset.tariterators import tar_file_iterator

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.identity import digest_of
from patchsieve.pipeline.pruned.dataset import PrunedDataset
from patchsieve.pipeline.shards.specs import expand_shards
from patchsieve.ranker.prune.config import PruneConfig
from patchsieve.ranker.prune.plan import freeze_plan, read_plan
from patchsieve.ranker.prune.ranking import PruneResult
from patchsieve.ranker.prune.request import make_prune_request
from patchsieve.ranker.select import image_choice
from patchsieve.ranker.select.image_choice import ImageChoice, find_threshold, image_scores, plan_images
from patchsieve.ranker.select.image_tables import find_image_tables
from tests.helpers.image_tables import identity_of, write_image_table
from tests.helpers.photos import photo_samples, write_shard
from tests.helpers.prune_runs import index_of, members_of, prune_config, pruning_of, save_small_ranker

SCORES = {"photo-0-0000": [1.0, 3.0], "photo-0-0001": [0.5, 0.5], "photo-0-0002": [4.0, 0.0]}
"""Image scores 2, 0.5 and 2; the shard has a fourth photo without one."""


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_small_ranker(tmp_path_factory.mktemp("ranker"))


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    samples = [*photo_samples(4, height=90, width=120), ("text", {"jpg": b"no picture", "cls": b"2"})]
    return write_shard(tmp_path_factory.mktemp("in") / "a.tar", samples)


@pytest.fixture(scope="module")
def table(shard: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image_table(tmp_path_factory.mktemp("table"), shard, SCORES)


def prune_planned(config: PruneConfig) -> dict[str, PruneResult]:
    """Plan the images and prune every shard without Ray; results by file name."""
    request = make_prune_request(config)
    assert request.choice is not None
    images = plan_images(request.choice, request.shards)
    planned = freeze_plan(request, budget=None, images=images, left_out=[], run_id="run")
    pruning = pruning_of(planned)
    return {shard.name.rpartition("/")[2]: pruning.run(shard) for shard in planned.shards}


def test_an_images_score_is_the_mean_over_its_views(shard: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    means = {f"key-{n}": random.random(4).tolist() for n in range(50)}
    one = write_image_table(tmp_path, shard, {key: values[:2] for key, values in means.items()})
    two = write_image_table(tmp_path, shard, {key: values[2:] for key, values in means.items()}, first_view=2)
    assert pq.read_metadata(one).num_row_groups > 1
    rows: dict[str, list[float]] = {}
    for row in [row for path in (one, two) for row in pq.read_table(path).to_pylist()]:
        rows.setdefault(row["sample_key"], []).append(statistics.fmean(row["score"]))
    (scored,) = find_image_tables([str(tmp_path)], expand_shards([str(shard)])).of.values()
    assert scored.urls == (str(one), str(two))
    keys, scores = image_scores(scored)
    assert dict(zip(keys, scores.tolist(), strict=True)) == pytest.approx(
        {key: statistics.fmean(views) for key, views in rows.items()}, rel=1e-12
    )


@pytest.mark.parametrize("kept", [1, 2, 500, 998, 999])
def test_the_threshold_is_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int) -> None:
    monkeypatch.setattr(image_choice, "_COUNTED", 100)
    scores = np.random.default_rng(0).normal(size=999)
    scores[7] = scores[8]
    scores.tofile(tmp_path / "scores")
    threshold = find_threshold(tmp_path / "scores", kept)
    ordered = np.sort(scores)[::-1]
    if kept == 999:
        assert threshold == -sys.float_info.max, "shards that come later keep all too"
    else:
        assert threshold == pytest.approx((ordered[kept - 1] + ordered[kept]) / 2, rel=1e-12)
        assert (scores >= threshold).sum() == kept


def test_equal_scores_stay_together(tmp_path: Path) -> None:
    np.array([1.0, 2, 2, 2, 3]).tofile(tmp_path / "scores")
    assert find_threshold(tmp_path / "scores", 2) == 1.5
    np.array([2.0, 2, 2]).tofile(tmp_path / "scores")
    assert find_threshold(tmp_path / "scores", 1) == 2.0
    neighbours = np.array([1.0, np.nextafter(1.0, 2)])
    neighbours.tofile(tmp_path / "scores")
    assert find_threshold(tmp_path / "scores", 1) == neighbours[1]


def test_shards_are_known_by_name_or_content(shard: Path, table: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved.tar"
    moved.write_bytes(shard.read_bytes())
    other = tmp_path / "other.tar"
    other.write_bytes(shard.read_bytes()[:-1] + b"x")
    shards = expand_shards([str(moved), str(other)])
    tables = find_image_tables([str(table)], shards)
    assert list(tables.of) == [shards[0].id]
    assert tables.identities == (identity_of(),)
    plan = plan_images(ImageChoice(tables=tables, keep=0.5, threshold=None), shards)
    assert (plan.threshold, plan.scored, plan.kept, plan.without) == (1.25, 3, 2, 1)


def test_tables_that_do_not_fit(shard: Path, table: Path, tmp_path: Path) -> None:
    shards = expand_shards([str(shard)])

    def refused(*tables: Path, match: str) -> None:
        with pytest.raises(UserError, match=match):
            find_image_tables([str(path) for path in tables], shards)

    same = {"first_view": 2, "seed": 3}
    refused(
        table,
        write_image_table(tmp_path, shard, SCORES, **same, metric="l2"),
        match=r"cannot be compared: metric: l1 -> l2",
    )
    assert find_image_tables([str(table), str(write_image_table(tmp_path, shard, SCORES, **same))], shards).of
    other = write_shard(tmp_path / "other.tar", photo_samples(1))
    refused(write_image_table(tmp_path, other, SCORES), match="no table is of any of the shards")
    longer = write_image_table(tmp_path / "longer", other, SCORES, name=str(shard))
    refused(longer, match=r"a\.tar has \d+ bytes, the shard that .* was scored from had \d+")
    changed = tmp_path / "changed.tar"
    changed.write_bytes(shard.read_bytes()[:-1] + b"x")
    changed_table = write_image_table(tmp_path / "changed", changed, SCORES, name=str(shard), first_view=2)
    refused(table, changed_table, match="are of different contents of")
    broken = write_image_table(tmp_path / "nan", shard, {"photo-0-0000": [1.0, float("nan")]})
    choice = ImageChoice(tables=find_image_tables([str(broken)], shards), keep=None, threshold=1.0)
    with pytest.raises(UserError, match="scores of photo-0-0000 that are no finite numbers"):
        plan_images(choice, shards)
    broken.unlink()
    with pytest.raises(UserError, match="is gone"):
        choice.of(shards[0])


@pytest.mark.parametrize("change", ["no column", "a null"])
def test_a_table_of_no_scores_is_damaged(shard: Path, tmp_path: Path, change: str) -> None:
    path = write_image_table(tmp_path, shard, SCORES)
    metadata = {b"patchsieve": pq.read_metadata(path).metadata[b"patchsieve"]}
    sound = pq.read_table(path)
    if change == "no column":
        table = sound.drop(["score"])
    else:
        at = sound.schema.get_field_index("score")
        kind = sound.schema.field(at).type
        scores = pa.array([None, *sound["score"].to_pylist()[1:]], kind)
        table = sound.set_column(at, pa.field("score", kind), scores)
    pq.write_table(table.replace_schema_metadata(metadata), path)
    shards = expand_shards([str(shard)])
    tables = find_image_tables([str(path)], shards)
    with pytest.raises(UserError, match=r"\.parquet is damaged"):
        image_scores(tables.of[shards[0].id])


def test_dropped_images_leave_with_their_sample(
    shard: Path, table: Path, ranker: str, tmp_path: Path
) -> None:
    config = prune_config([shard], tmp_path / "out", ranker, keep_images=0.5, table=(str(table),), keep=0.25)
    result = prune_planned(config)["a.tar"]
    assert (result.samples, result.images, result.dropped, result.unscored) == (5, 3, 1, 1)
    assert (result.quarantined, result.kept, result.failed) == (1, 3 * 4, None)
    rows = {row["sample_key"]: row for row in index_of(tmp_path / "out")}
    assert list(rows) == [*SCORES, "photo-0-0003", "text"], "every key has its row"
    gone = rows["photo-0-0001"]
    assert gone["reason"] == "dropped: its image score is below 1.25"
    assert (gone["image_score"], gone["positions"], gone["kept"], gone["bytes_after"]) == (0.5, None, None, 0)
    members = [(name, data) for name, data in members_of(shard) if name.startswith("photo-0-0001")]
    assert gone["bytes_before"] == sum(len(data) for _, data in members)
    assert [rows[key]["image_score"] for key in SCORES] == [2.0, 0.5, 2.0]
    assert (rows["photo-0-0003"]["image_score"], rows["photo-0-0003"]["kept"]) == (None, 4)
    assert {row["reason"] for row in rows.values() if row["kept"]} == {None}
    names = [name for name, _ in members_of(tmp_path / "out" / "shards" / "a.tar")]
    assert not [name for name in names if name.startswith("photo-0-0001")]
    assert names[-2:] == ["text.jpg", "text.cls"], "a bad sample is no dropped one"
    (errors,) = (tmp_path / "out" / "errors").glob("*.parquet")
    assert pq.read_table(errors)["sample_key"].to_pylist() == ["text"]


def test_an_index_of_dropped_images_is_read_back(
    shard: Path, table: Path, ranker: str, tmp_path: Path
) -> None:
    config = prune_config([shard], tmp_path, ranker, min_score=1.0, table=(str(table),), format="index")
    assert prune_planned(config)["a.tar"].dropped == 1
    dataset = PrunedDataset(str(shard), index=str(tmp_path), handler=webdataset.ignore_and_continue)
    assert [sample.key for sample in dataset] == ["photo-0-0000", "photo-0-0002", "photo-0-0003"]


def test_a_shard_of_dropped_images_alone_is_an_empty_tar(ranker: str, tmp_path: Path) -> None:
    paths = [write_shard(tmp_path / "in" / f"{n}.tar", photo_samples(2, n, 90, 120)) for n in range(2)]
    for number, path in enumerate(paths):
        keys = [key for key, _ in photo_samples(2, number, 90, 120)]
        write_image_table(tmp_path / "table", path, {key: [number + 1.0] * 2 for key in keys})
    for form in ("packed", "masked"):
        out = tmp_path / form
        config = prune_config(
            paths, out, ranker, min_score=1.5, table=(str(tmp_path / "table"),), format=form
        )
        results = prune_planned(config)
        assert [(item.dropped, item.images, item.failed) for item in results.values()] == [
            (2, 0, None),
            (0, 2, None),
        ]
        assert members_of(out / "shards" / "0.tar") == []
        assert (out / "shards" / "0.tar").stat().st_size == results["0.tar"].tar_bytes == 1024
    dataset = PrunedDataset(str(tmp_path / "packed" / "shards" / "*.tar"))
    assert [sample.key for sample in dataset] == ["photo-1-0000", "photo-1-0001"]
    with open(tmp_path / "masked" / "shards" / "0.tar", "rb") as file:
        assert list(tar_file_iterator(file)) == [], "plain webdataset goes on to the next shard"


def test_a_shard_that_changed_since_it_was_scored_fails(
    shard: Path, table: Path, ranker: str, tmp_path: Path
) -> None:
    path = tmp_path / "in" / "a.tar"
    path.parent.mkdir()
    path.write_bytes(shard.read_bytes()[:-1] + b"x")
    tables = write_image_table(tmp_path, shard, SCORES, name=str(path))
    config = prune_config([path], tmp_path / "out", ranker, min_score=0.0, table=(str(tables),))
    failed = prune_planned(config)["a.tar"].failed
    assert failed == "it is not the shard that its score tables were made from: score it again"
    assert not list((tmp_path / "out").rglob("*.tar"))


def test_the_plan_is_frozen_and_part_of_the_identity(shard: Path, table: Path, tmp_path: Path) -> None:
    ranker = "baseline:variance"
    config = prune_config([shard], tmp_path / "out", ranker, keep_images=0.5, table=(str(table.parent),))
    request = make_prune_request(config)
    assert request.choice is not None
    assert read_plan(request) is None
    plan = plan_images(request.choice, request.shards)
    planned = freeze_plan(request, budget=None, images=plan, left_out=[], run_id="run")
    added = {"image_tables": [identity_of()], "image_keep": 0.5, "image_threshold": 1.25}
    plain = dataclasses.replace(config, keep_images=None, table=())
    assert planned.fields == {**make_prune_request(plain).fields, **added}
    # More tables of the same rows: the threshold stays, whatever their scores say.
    later = write_shard(tmp_path / "in" / "b.tar", photo_samples(2, 5, 90, 120))
    keys = [key for key, _ in photo_samples(2, 5, 90, 120)]
    write_image_table(table.parent, later, {keys[0]: [9.0, 9.0], keys[1]: [1.0, 1.0]})
    more = read_plan(make_prune_request(dataclasses.replace(config, shards=(str(shard), str(later)))))
    assert more is not None
    assert digest_of(more.fields) == digest_of(planned.fields)
    result = pruning_of(more).run(more.shards[1])
    assert (result.images, result.dropped) == (1, 1)

    def refused(match: str, **changes: Any) -> None:
        with pytest.raises(UserError, match=match):
            read_plan(make_prune_request(dataclasses.replace(config, **changes)))

    refused(r"image_keep: 0\.5 -> 0\.25", keep_images=0.25)
    refused(r"image_min_score: not set -> 1\.0", keep_images=None, min_score=1.0)
    views = write_image_table(tmp_path / "views", shard, SCORES, first_view=2)
    refused("image_tables: ", table=(str(table.parent), str(views)))
    refused(r"image_keep: 0\.5 -> not set", keep_images=None, table=(), target_ratio=0.5, temperature=1.0)
