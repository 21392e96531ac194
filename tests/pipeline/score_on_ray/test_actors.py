"""Actors that die, hang or never come up: shards are tried again, the guilty ones given up alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import ray

from patchsieve.pipeline.cluster.private_api import jobs_with_actors
from patchsieve.pipeline.score_on_ray import patience
from tests.helpers.faults import Faults
from tests.helpers.photos import photo_samples, write_shard
from tests.helpers.score_processes import leftovers, run_here
from tests.helpers.score_runs import rows_of, save_small_teacher, score_config, score_here

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_small_teacher(tmp_path_factory.mktemp("teacher"))


def make_shards(folder: Path, count: int) -> list[Path]:
    """Shards `0.tar`, ... of five photos each; photo n of shard s has the key `photo-<s>-000<n>`."""
    return [
        write_shard(folder / f"{number}.tar", photo_samples(5, number, 64, 64)) for number in range(count)
    ]


def failed_records(out: Path) -> dict[str, dict]:
    records = [json.loads(file.read_text()) for file in (out / "failed").glob("*.json")]
    return {Path(record["shard"]).name: record for record in records}


def complaints(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What the job itself wrote to standard error, where this Ray also shows what its workers print."""
    marker = "patchsieve score: "
    return [line.removeprefix(marker) for line in capsys.readouterr().err.splitlines() if marker in line]


def test_a_shard_whose_actor_died_is_tried_again_and_one_that_always_kills_is_given_up_alone(
    teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = make_shards(tmp_path / "shards", 4)
    faults = Faults(folder=str(tmp_path), kill=("photo-1-0002",), kill_once=("photo-3-0004",))
    faults.put_in_actors(monkeypatch)
    out = tmp_path / "out"
    config = score_config(shards, out, teacher, max_actors=2)
    assert run_here(config, tmp_path) == 1

    healthy = [shards[number] for number in (0, 2, 3)]
    score_here(score_config(healthy, tmp_path / "expected", teacher))
    assert rows_of(out) == rows_of(tmp_path / "expected")
    assert faults.marks("kill_once.photo-3-0004") == 1
    assert faults.marks("kill.photo-1-0002") >= 3
    records = failed_records(out)
    assert records.keys() == {"1.tar"}
    assert records["1.tar"]["attempts"] == 3
    assert "its actor died" in records["1.tar"]["reason"]
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("failed:")]
    assert str(shards[1]) in line
    assert leftovers(out) == []


def test_a_failed_constructor_ends_the_run_with_its_reason(
    teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    faults = Faults(folder=str(tmp_path), refuse="the weights have gone")
    faults.put_in_actors(monkeypatch)
    out = tmp_path / "out"
    config = score_config(make_shards(tmp_path / "shards", 3), out, teacher, max_actors=2)
    assert run_here(config, tmp_path) == 1
    assert complaints(capsys) == ["an actor could not start: OSError: the weights have gone"]
    assert faults.marks("made") <= 2
    assert leftovers(out) == []
    (record,) = (out / "runs").glob("*.json")
    assert "the weights have gone" in json.loads(record.read_text())["state"]


def test_an_actor_without_progress_is_replaced_and_its_shard_tried_again(
    teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = make_shards(tmp_path / "shards", 3)
    faults = Faults(folder=str(tmp_path), block_once=("photo-1-0001",))
    faults.put_in_actors(monkeypatch)
    out = tmp_path / "out"
    config = score_config(shards, out, teacher, stall_timeout=5.0)
    assert run_here(config, tmp_path) == 0
    score_here(score_config(shards, tmp_path / "expected", teacher))
    assert rows_of(out) == rows_of(tmp_path / "expected")
    assert faults.marks("block_once.photo-1-0001") >= 2
    assert faults.marks("made") >= 2
    assert leftovers(out) == []


def test_a_run_that_gets_no_gpu_says_what_it_asked_for_and_what_there_is(
    teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The cluster is looked at all the time; who has it is a job of ours, which is not waited for.
    monkeypatch.setattr(patience, "ASK_S", 0.0)

    class Greedy:
        def here(self) -> None:
            """Answers when both GPUs are taken."""

    remote: Any = ray.remote
    idle = remote(num_cpus=0)(Greedy).remote()
    before, _ = jobs_with_actors()
    ray.get(idle.here.remote())
    assert jobs_with_actors()[0] == before, "it holds nothing"
    greedy = remote(num_gpus=2, num_cpus=0)(Greedy).remote()
    ray.get(greedy.here.remote())
    assert len(jobs_with_actors()[0]) == len(before) + 1
    try:
        config = score_config(
            make_shards(tmp_path / "shards", 1),
            tmp_path / "out",
            teacher,
            gpus_per_actor=1.0,
            start_timeout=3.0,
        )
        assert run_here(config, tmp_path) == 1
    finally:
        ray.kill(greedy)
    (complaint,) = complaints(capsys)
    assert "no actor became ready in 3 s" in complaint
    assert "1 GPUs, the nodes have 4 CPUs + 2 GPUs" in complaint
    assert leftovers(tmp_path / "out") == []
