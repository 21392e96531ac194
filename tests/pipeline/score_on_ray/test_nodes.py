"""Nodes that join, are drained, are lost, or see another output, while runs go on; the cluster begins without any."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.faults import Faults
from tests.helpers.photos import photo_samples, write_shard
from tests.helpers.score_processes import ScoreProcess, leftovers, score_process
from tests.helpers.score_runs import rows_of, save_small_teacher, score_config, score_here
from tests.helpers.servers import s3_for_this_process, serve_files
from tests.pipeline.score_on_ray.cluster_process import ClusterProcess, ray_nodes

Event = dict[str, Any]
SHARDS = 8
KEYS = tuple(f"photo-{number}-0002" for number in range(SHARDS))
"""A sample of each shard, at which its actor waits."""


class Run:
    """A score run whose events are read as they come, and whose actors wait in mid-shard."""

    def __init__(self, process: ScoreProcess, folder: Path) -> None:
        self.process, self._folder = process, folder

    def events(self, name: str) -> list[Event]:
        lines = [line for line in self.process.output.splitlines() if line.startswith("{")]
        return [event for event in map(json.loads, lines) if event["event"] == name]

    def wait_for(self, name: str, which: Callable[[Event], bool] = lambda event: True) -> Event:
        """The first such event, when it has come."""
        self.process.wait_for(lambda: any(map(which, self.events(name))), name)
        return next(filter(which, self.events(name)))

    def held(self, pid: int) -> list[str]:
        """Keys of the samples at which a process waits."""
        files = [(key, self._folder / f"hold.{key}") for key in KEYS]
        return [key for key, file in files if file.exists() and str(pid) in file.read_text().splitlines()]

    def has_left(self, node_id: str, pid: int, faults: Faults) -> bool:
        """Whether the actor of a node is gone; meanwhile its process goes on with all at which it waits."""
        for key in self.held(pid):
            faults.go(key)
        return any(event["node_id"] == node_id for event in self.events("actor gone"))

    def waiting(self, *, but: set[int]) -> int:
        """The process of an actor that waits in mid-shard and is none of these, when there is one."""

        def pids() -> set[int]:
            files = [self._folder / f"hold.{key}" for key in KEYS]
            return {int(pid) for file in files if file.exists() for pid in file.read_text().split()} - but

        self.process.wait_for(pids, "another actor in mid-shard")
        return min(pids())


def a_run_while_nodes_come_and_go(cluster: ClusterProcess, run: Run, faults: Faults) -> None:
    """Four nodes, one after the other but for the first two; the last one is left."""
    run.wait_for("progress", lambda event: event["starting"] == SHARDS)
    assert not run.events("actor ready"), "the head could hold an actor, and is spared"
    first = cluster.add_node()
    kept = run.waiting(but=set())
    second = cluster.add_node()
    lost = run.waiting(but={kept})

    # Drained with time enough: what it has begun it finishes, what it had not goes back.
    cluster.drain_node_of(kept, seconds=3600)
    gone_back = run.wait_for("shard given back")
    assert gone_back["node_id"] == first
    # It may have begun a second shard, whose sample it reaches later.
    run.process.wait_for(lambda: run.has_left(first, kept, faults), "the drained actor retired")
    assert {event["why"] for event in run.events("actor gone")} == {"retired"}
    assert any(event["node_id"] == first for event in run.events("shard done"))

    third = cluster.add_node()
    drained = run.waiting(but={kept, lost})
    # Drained with no time left: all that it has goes back.
    cluster.drain_node_of(drained, seconds=5)
    gone = run.wait_for("actor gone", lambda event: event["node_id"] == third)
    assert (gone["why"], len(gone["shards"])) == ("retired", 1)
    done_there = {event["shard"] for event in run.events("shard done") if event["node_id"] == third}
    assert done_there.isdisjoint(gone["shards"])

    cluster.lose_node_of(lost)
    gone = run.wait_for("actor gone", lambda event: event["node_id"] == second)
    assert gone["why"] == "lost"
    cluster.add_node()
    faults.go()
    assert run.process.end() == 0, run.process.output


@pytest.mark.ray
@pytest.mark.slow
def test_nodes_that_come_and_go_and_one_that_sees_another_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = save_small_teacher(tmp_path)
    shards = [
        write_shard(tmp_path / f"{number}.tar", photo_samples(4, number, 64, 64)) for number in range(SHARDS)
    ]
    faults = Faults(folder=str(tmp_path), hold=KEYS)
    out = tmp_path / "out"
    given: dict[str, Any] = {"gpus_per_actor": 1.0, "head_node": "spare", "log_format": "json"}
    config = score_config(shards, out, teacher, max_actors=SHARDS, **given)
    with s3_for_this_process(monkeypatch) as store, serve_files() as another, ray_nodes() as cluster:
        with score_process(config, tmp_path, faults, RAY_ADDRESS=cluster.address) as process:
            run = Run(process, tmp_path)
            a_run_while_nodes_come_and_go(cluster, run, faults)
        assert cluster.head not in {event["node_id"] for event in run.events("actor ready")}
        # Actors that wait for room die with the node at which Ray has them wait: no fault of theirs, however many.
        assert {event["why"] for event in run.events("actor gone")} == {"retired", "lost"}
        assert not run.events("shard failed")

        # One of two nodes reaches another store by the same name.
        blind = cluster.add_node(AWS_ENDPOINT_URL=another.url("").rstrip("/"))
        config = score_config(shards[:2], store.url("out"), teacher, max_actors=None, **given)
        # The node that sees the right one does not end the run before the other is asked.
        held = Faults(folder=str(tmp_path / "held"), hold=KEYS)
        Path(held.folder).mkdir()
        with score_process(config, tmp_path, held, RAY_ADDRESS=cluster.address) as process:
            assert process.end() == 2, process.output
        (complaint,) = [line for line in process.output.splitlines() if line.startswith("patchsieve score: ")]
        assert f"({blind[:8]}) cannot write to {store.url('out')}" in complaint
        assert "use storage that all nodes see" in complaint
    score_here(score_config(shards, tmp_path / "expected", teacher))
    assert rows_of(out) == rows_of(tmp_path / "expected")
    assert leftovers(out) == []
