"""The whole job on Ray: equal rows on one actor and on two, after a retry and after resume; what a run leaves."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import ray

from patchsieve.jobs.arguments import read_config
from patchsieve.pipeline.cluster.places import Place
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.row_config import Precision
from patchsieve.pipeline.runs.status import read_status
from patchsieve.pipeline.score.config import ScoreConfig
from patchsieve.pipeline.score_on_ray import policy as queue_policy
from patchsieve.pipeline.score_on_ray import queue as shard_queue
from patchsieve.pipeline.score_on_ray.policy import MOST_SLOTS, NOWHERE, QueuePolicy
from patchsieve.pipeline.score_on_ray.summary import ScoreSummary
from patchsieve.pipeline.shards.specs import shard_id
from tests.helpers.checkout import ROOT, python_path
from tests.helpers.photos import photo, photo_samples, write_shard
from tests.helpers.score_runs import (
    Watched,
    breaks_off,
    footers_of,
    rows_of,
    run_score,
    save_small_teacher,
    score_config,
    score_here,
)
from tests.helpers.servers import serve_files

pytestmark = pytest.mark.ray


class Run(NamedTuple):
    """A run to the end, and what it showed meanwhile."""

    config: ScoreConfig
    summary: ScoreSummary
    display: Watched


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_small_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of one file name and equal keys in two folders, and a third with a picture slow to decode."""
    folder = tmp_path_factory.mktemp("corpus")
    write_shard(folder / "one" / "photos.tar", photo_samples(5, height=60, width=80))
    write_shard(folder / "two" / "photos.tar", photo_samples(5, height=70, width=80))
    write_shard(folder / "three.tar", [("large", {"jpg": photo(1, 1500, 1500)})])
    return folder


def shards_of(corpus: Path) -> list[Path]:
    return sorted(corpus.rglob("*.tar"))


@pytest.fixture(scope="module")
def first(ray_cluster: None, corpus: Path, teacher: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One actor on a CPU; the output is read only."""
    out = tmp_path_factory.mktemp("first") / "out"
    config = score_config(shards_of(corpus), out, teacher, root=str(corpus))
    display = Watched()
    return Run(config, run_score(config, display), display)


def copy_of(run: Run, folder: Path) -> ScoreConfig:
    """The run's settings for a copy of its output."""
    shutil.copytree(run.config.out, folder)
    return dataclasses.replace(run.config, out=str(folder))


def times_of(out: str) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (Path(out) / "scores").iterdir()}


def test_runs_of_parts_give_the_rows_of_one_run(first: Run, tmp_path: Path) -> None:
    parts = [dataclasses.replace(first.config, out=str(tmp_path), part=f"{index}/2") for index in (1, 2)]
    summaries = [run_score(part) for part in parts]
    assert [summary.exit_code for summary in summaries] == [0, 0]
    assert sum(summary.shards for summary in summaries) == first.summary.shards
    assert rows_of(tmp_path) == rows_of(first.config.out)
    assert read_status(str(tmp_path)).parts == {"1/2": "complete", "2/2": "complete"}


def test_an_actor_gives_the_rows_of_this_process(first: Run, tmp_path: Path) -> None:
    score_here(dataclasses.replace(first.config, out=str(tmp_path)))
    assert rows_of(tmp_path) == rows_of(first.config.out)
    assert len(rows_of(tmp_path)) == 22


def test_what_a_complete_run_leaves_and_says(first: Run) -> None:
    out, summary = Path(first.config.out), first.summary
    assert (summary.exit_code, summary.state) == (0, "complete")
    assert (summary.shards, summary.done, summary.done_before) == (3, 3, 0)
    assert (summary.samples, summary.bad, summary.rows) == (11, 0, 22)
    assert (summary.images, summary.views, summary.failed, summary.missing) == (11, 22, {}, [])
    assert summary.table_bytes == sum(path.stat().st_size for path in (out / "scores").iterdir())
    assert [device.split()[0] for device in summary.devices] == ["cpu"]
    (record,) = (json.loads(path.read_text()) for path in (out / "runs").iterdir())
    assert record.pop("shards") == {"prefix": "", "names": ["one/photos.tar", "three.tar", "two/photos.tar"]}
    assert record.pop("changed") == []
    asked = record.pop("asked")
    assert (asked["out"], asked["views"], asked["precision"]) == (first.config.out, "2", "fp32")
    told = json.loads(json.dumps(dataclasses.asdict(summary)))
    del told["shards"]  # their names are there
    assert record == told
    # Neither an owner nor anything half written, and no folder that nothing needs.
    assert sorted(path.name for path in out.iterdir()) == [
        "cache",
        "config.json",
        "runs",
        "score.yaml",
        "scores",
    ]
    assert read_config("score", ScoreConfig, ["--config", str(out / "score.yaml")]) == first.config
    stored = json.loads((out / "config.json").read_text())
    assert stored["rows"]["precision"] == "fp32"
    assert stored["identity"] == footers_of(out)["three.tar"]["identity"]


def test_progress_while_it_runs(first: Run) -> None:
    seen = first.display.seen
    assert [totals.done for totals in seen] == sorted(totals.done for totals in seen)
    assert (seen[-1].shards, seen[-1].done, seen[-1].failed) == (3, 3, 0)
    assert (seen[-1].images, seen[-1].views, seen[-1].faults) == (11, 22, 0)
    assert any(totals.starting for totals in seen)
    assert all(0 <= totals.waited_share <= 1 for totals in seen)
    # It waits for the one large picture at least.
    assert 0 < first.summary.waited_share < 1


def test_a_second_run_has_nothing_to_do(first: Run, tmp_path: Path) -> None:
    config = copy_of(first, tmp_path / "out")
    before = times_of(config.out)
    display = Watched()
    summary = run_score(config, display)
    assert (summary.exit_code, summary.done, summary.done_before) == (0, 3, 3)
    assert (summary.rows, summary.images, summary.views) == (22, 0, 0)
    assert times_of(config.out) == before
    assert display.seen == [], "no actor was asked for"
    assert len(list((tmp_path / "out" / "runs").iterdir())) == 2


def test_copied_and_touched_shards_are_not_scored_again(first: Run, corpus: Path, tmp_path: Path) -> None:
    config = copy_of(first, tmp_path / "out")
    shutil.copytree(corpus, tmp_path / "corpus", copy_function=shutil.copyfile)
    moved = tuple(str(path) for path in shards_of(tmp_path / "corpus"))
    os.utime(moved[0], ns=(1, 1))
    before = times_of(config.out)
    summary = run_score(dataclasses.replace(config, shards=moved, root=str(tmp_path / "corpus")))
    assert (summary.exit_code, summary.done_before) == (0, 3)
    assert times_of(config.out) == before


def test_a_changed_shard_is_scored_again(first: Run, corpus: Path, tmp_path: Path) -> None:
    config = copy_of(first, tmp_path / "out")
    shutil.copytree(corpus, tmp_path / "corpus")
    changed = tmp_path / "corpus" / "two" / "photos.tar"
    content = bytearray(changed.read_bytes())
    label = content.index(b"photo-0-0000.cls") + 512
    content[label : label + 1] = b"7"
    changed.write_bytes(content)
    shards = tuple(str(path) for path in shards_of(tmp_path / "corpus"))
    before, old = times_of(config.out), footers_of(config.out)
    summary = run_score(dataclasses.replace(config, shards=shards, root=str(tmp_path / "corpus")))
    assert (summary.exit_code, summary.done_before, summary.done) == (0, 2, 3)
    written = {name for name, time in times_of(config.out).items() if time != before[name]}
    assert written == {f"{shard_id('two/photos.tar')}.parquet"}
    footer = footers_of(config.out)["two/photos.tar"]
    assert footer["shard"]["size"] == old["two/photos.tar"]["shard"]["size"]
    assert footer["shard"]["sha256"] != old["two/photos.tar"]["shard"]["sha256"]
    # Only a label was changed.
    assert rows_of(config.out) == rows_of(first.config.out)


def test_other_settings_are_refused_by_name(first: Run, teacher: str, tmp_path: Path) -> None:
    config = copy_of(first, tmp_path / "out")
    before = sorted(path.name for path in (tmp_path / "out").rglob("*"))
    other = dataclasses.replace(config, views="8", seed=3, metric="l2")
    with pytest.raises(UserError, match="metric: l1 -> l2; seed: 0 -> 3; --views: 2 -> 8"):
        run_score(other)
    another = save_small_teacher(tmp_path, seed=1)
    with pytest.raises(UserError, match=r"teacher: [0-9a-f]{60}\.\.\. -> [0-9a-f]{60}"):
        run_score(dataclasses.replace(config, teacher=another))
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == before


def test_small_shards_wait_for_no_commit(
    ray_cluster: None, teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []

    class Counting(QueuePolicy):
        """Notes how many shards the actor holds once it gets another."""

        def assign(self, actor: str, now: float, *, bytes_per_s: float = 0.0) -> int | None:
            shard = super().assign(actor, now, bytes_per_s=bytes_per_s)
            held.append(len(self.holding(actor)))
            return shard

    monkeypatch.setattr(shard_queue, "QueuePolicy", Counting)
    # However slow the machine is.
    monkeypatch.setattr(queue_policy, "AHEAD_S", 3600.0)
    shards = [
        write_shard(tmp_path / f"{number}.tar", photo_samples(1, number, 48, 48)) for number in range(24)
    ]
    config = score_config(shards, tmp_path / "out", teacher)
    assert run_score(config).done == 24
    # Before the teacher's speed is known it is two.
    assert max(held[: held.index(2) + 2]) == 2
    assert max(held) == MOST_SLOTS
    # None shares a batch with another: the same rows as one by one.
    score_here(dataclasses.replace(config, out=str(tmp_path / "expected")))
    assert rows_of(tmp_path / "out") == rows_of(tmp_path / "expected")


class Patient(QueuePolicy):
    """Hands out nothing before two actors are ready, so that each gets a share however slowly one starts."""

    ready = 0

    def add_actor(self, actor: str, place: Place = NOWHERE) -> None:
        super().add_actor(actor, place)
        self.ready += 1

    def assign(self, actor: str, now: float, *, bytes_per_s: float = 0.0) -> int | None:
        return super().assign(actor, now, bytes_per_s=bytes_per_s) if self.ready >= 2 else None


def test_two_actors_with_a_gpu_each(first: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_queue, "QueuePolicy", Patient)
    config = dataclasses.replace(
        first.config,
        shards=tuple(reversed(first.config.shards)),
        out=str(tmp_path),
        gpus_per_actor=1.0,
        max_actors=None,
    )
    summary = run_score(config)
    assert (summary.exit_code, summary.done) == (0, 3)
    assert rows_of(tmp_path) == rows_of(first.config.out)
    provenance = [footer["provenance"] for footer in footers_of(tmp_path).values()]
    assert {tuple(entry["device_ids"]) for entry in provenance} == {("0",), ("1",)}
    assert {entry["threads"] for entry in provenance} == {1}
    assert {entry["run_id"] for entry in provenance} == {summary.run_id}


def test_resume_through_another_endpoint_that_breaks_off(first: Run, corpus: Path, tmp_path: Path) -> None:
    config = copy_of(first, tmp_path / "out")
    left = [file for file in (tmp_path / "out" / "scores").iterdir() if file.name.startswith("photos")]
    for file in left:
        file.unlink()
    with serve_files() as server:
        for path in shards_of(corpus):
            server.files[f"/{path.relative_to(corpus)}"] = path.read_bytes()
        broken = "/two/photos.tar"
        server.troubles[broken] = breaks_off(len(server.files[broken]))
        shards = tuple(server.url(path) for path in server.files)
        summary = run_score(dataclasses.replace(config, shards=shards, root=server.url("/")))
        assert server.troubles[broken] == []
    assert len(left) == 2
    assert (summary.exit_code, summary.done, summary.done_before) == (0, 3, 1)
    assert rows_of(tmp_path / "out") == rows_of(first.config.out)


def test_the_command_by_its_defaults(ray_cluster: None, corpus: Path, teacher: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["score", str(corpus / "three.tar"), "--out", str(out), "--teacher", teacher]
    done = subprocess.run(
        [sys.executable, "-m", "patchsieve.jobs.cli", *arguments],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": python_path(ROOT),
            "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    *plain, closing, _ = done.stdout.splitlines()
    assert closing == f"complete: 1 of 1 shard done, 4 rows in {out}"
    assert all(re.match(r"\d\d:\d\d:\d\d  shards ", line) for line in plain)
    (footer,) = footers_of(out).values()
    assert footer["provenance"]["batch_size"] >= 1
    assert len(footer["provenance"]["device_ids"]) == 1
    # What the first actor's probe found is fixed: a later run takes it over, and may not ask for another.
    precision = json.loads((out / "config.json").read_text())["rows"]["precision"]
    config = ScoreConfig(shards=(str(corpus / "three.tar"),), out=str(out), teacher=teacher)
    assert run_score(config).done_before == 1
    other: Precision = "bf16" if precision == "fp32" else "fp32"
    with pytest.raises(UserError, match=f"precision: {precision} -> {other}"):
        run_score(dataclasses.replace(config, precision=other))
