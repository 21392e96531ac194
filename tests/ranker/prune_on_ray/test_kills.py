"""Prune runs whose driver is killed outright, and the run after them, which loses an actor."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from patchsieve.pipeline.runs.config_file import config_to_yaml
from patchsieve.ranker.prune.request import make_prune_request
from patchsieve.ranker.prune_on_ray import waves as ray_prune
from patchsieve.ranker.prune_on_ray.run import prune
from tests.helpers.checkout import ROOT, python_path
from tests.helpers.photos import photo_samples, write_shard
from tests.helpers.prune_runs import contents, prune_config, prune_here, save_small_ranker
from tests.helpers.score_processes import DEADLINE_S, leftovers
from tests.helpers.score_runs import Watched
from tests.ranker.prune_on_ray.dying_run import MOMENT, faulty_worker


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_drivers_and_an_actor_are_killed_and_the_shards_are_those_of_an_uninterrupted_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranker = save_small_ranker(tmp_path)
    shards = [write_shard(tmp_path / "in" / f"{n}.tar", photo_samples(6, n, 64, 64)) for n in range(3)]
    before = [path.read_bytes() for path in shards]
    out = tmp_path / "out"
    config = prune_config(shards, out, ranker)
    file = tmp_path / "config.yaml"
    file.write_bytes(config_to_yaml(config))
    moments = ("key:photo-1-0003", "before:*/out/index/1-*.parquet")
    for number, moment in enumerate(moments):
        marks = tmp_path / str(number)
        marks.mkdir()
        ended = subprocess.run(
            [
                sys.executable,
                "-m",
                "tests.ranker.prune_on_ray.dying_run",
                str(marks),
                "--config",
                str(file),
            ],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": python_path(ROOT),
                "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
                MOMENT: moment,
            },
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert ended.returncode == -9, ended.stdout + ended.stderr
        assert (marks / "killed").exists()
        assert [path.name[:2] for path in (out / "index").glob("*.parquet")] == ["0-"]
        tars = sorted(path.name for path in (out / "shards").glob("*.tar"))
        # The second dies between tar and index: the tar is there, and its shard is not done.
        assert tars == (["0.tar"], ["0.tar", "1.tar"])[number]

    marks = tmp_path / "last"
    marks.mkdir()
    monkeypatch.setattr(ray_prune, "PruneWorker", faulty_worker(0, marks, key="photo-2-0003"))
    summary = prune(make_prune_request(config), Watched(), settings=config_to_yaml(config))
    assert (marks / "killed").exists()
    assert (summary.exit_code, summary.done_before, summary.done, summary.failed) == (0, 1, 3, {})
    prune_here(prune_config(shards, tmp_path / "here", ranker))
    assert contents(out) == contents(tmp_path / "here")
    assert leftovers(out) == []
    assert [path.read_bytes() for path in shards] == before
