"""The prune job on Ray Data with whole images dropped: one plan for images and patches, frozen for later shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.runs.config_file import config_to_yaml
from patchsieve.pipeline.runs.progress import Rates, cells
from patchsieve.ranker.prune.config import PruneConfig
from patchsieve.ranker.prune.request import make_prune_request
from patchsieve.ranker.prune_on_ray.run import prune
from patchsieve.ranker.prune_on_ray.summary import PruneSummary
from tests.helpers.image_tables import identity_of, write_image_table
from tests.helpers.photos import photo_samples, write_shard
from tests.helpers.prune_runs import index_of, prune_config
from tests.helpers.score_processes import leftovers
from tests.helpers.score_runs import Watched

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

PATCHES = 196


def run_prune(config: PruneConfig, display: Watched | None = None) -> PruneSummary:
    return prune(make_prune_request(config), display or Watched(), settings=config_to_yaml(config))


def shard_with_table(folder: Path, number: int, scores: list[float]) -> Path:
    """A shard of one photo more than there are scores, and the table of the others."""
    samples = photo_samples(len(scores) + 1, number, height=80, width=100)
    path = write_shard(folder / "in" / f"{number}.tar", samples)
    means = {key: [score] * 2 for (key, _), score in zip(samples, scores, strict=False)}
    write_image_table(folder / "tables", path, means)
    return path


def test_images_and_a_budget_are_planned_once(tmp_path: Path) -> None:
    out, tables = tmp_path / "out", str(tmp_path / "tables")
    shards = [shard_with_table(tmp_path, n, scores) for n, scores in enumerate([[4.0, 1.0, 3.0], [2.0, 9.0]])]
    options: dict[str, Any] = {
        "keep_images": 0.6,
        "target_ratio": 0.4,
        "temperature": 50.0,
        "table": (tables,),
    }
    display = Watched()
    first = run_prune(prune_config(shards, out, "baseline:variance", **options), display)
    # Of five scores the three highest stay, and the two images without one; the budget is of those that stay.
    assert (first.exit_code, first.images, first.dropped, first.unscored) == (0, 5, 2, 2)
    assert (first.patches, first.kept) == (5 * PATCHES, int(5 * PATCHES * 0.4))
    assert "whole images: 2 of 7 dropped for their score, 2 kept without one" in first.lines(str(out))
    shown = cells(display.seen[-1], Rates(images_per_s=1.0, views_per_s=1.0, eta_s=None))
    assert (shown["images"], shown["dropped"]) == ("5", "2")
    plan = (out / "plan.json").read_bytes()
    told = json.loads(plan)
    assert told["whole_images"] == {"threshold": 2.5, "scored": 5, "kept": 3, "without": 0}
    assert (told["images"], told["kept"]) == (5, first.kept)
    config = json.loads((out / "config.json").read_text())["rows"]
    assert (config["image_tables"], config["image_keep"]) == ([identity_of()], 0.6)
    assert (config["image_threshold"], config["select_threshold"]) == (2.5, told["threshold"])
    rows = {row["sample_key"]: row for row in index_of(out)}
    assert {key for key, row in rows.items() if row["kept"] is None} == {"photo-0-0001", "photo-1-0000"}
    times = {path.name: path.stat().st_mtime_ns for path in (out / "shards").iterdir()}
    # A shard that comes later, with its table: the same thresholds, and the first ones stay as they are.
    shards.append(shard_with_table(tmp_path, 2, [2.4, 2.6]))
    second = run_prune(prune_config(shards, out, "baseline:variance", **options))
    assert (second.exit_code, second.done_before, second.images, second.dropped) == (0, 2, 2, 1)
    assert (out / "plan.json").read_bytes() == plan
    after = {path.name: path.stat().st_mtime_ns for path in (out / "shards").iterdir()}
    assert {name: time for name, time in after.items() if name in times} == times
    assert leftovers(out) == []
    with pytest.raises(UserError, match=r"image_keep: 0\.6 -> 0\.5"):
        run_prune(prune_config(shards, out, "baseline:variance", **{**options, "keep_images": 0.5}))
