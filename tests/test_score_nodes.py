"""Nodes that are lost or join while a run goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.cluster_process import ray_nodes
from tests.helpers.faults import Faults
from tests.helpers.photos import photo_samples, write_shard
from tests.helpers.score_processes import leftovers, score_process
from tests.helpers.score_runs import rows_of, save_small_teacher, score_config, score_here


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_shards_of_a_lost_node_are_redone_at_no_attempt_and_a_node_that_joins_gets_an_actor(
    tmp_path: Path,
) -> None:
    teacher = save_small_teacher(tmp_path)
    shards = [
        write_shard(tmp_path / f"{number}.tar", photo_samples(4, number, 64, 64)) for number in range(4)
    ]
    keys = [f"photo-{number}-0002" for number in range(4)]
    faults = Faults(folder=str(tmp_path), hold=tuple(keys))
    out = tmp_path / "out"
    config = score_config(shards, out, teacher, max_actors=None)
    with (
        ray_nodes(2) as cluster,
        score_process(config, tmp_path, faults, RAY_ADDRESS=cluster.address) as run,
    ):
        held = [tmp_path / f"hold.{key}" for key in keys]
        run.wait_for(lambda: sum(file.exists() for file in held) == 2, "both nodes are in mid-shard")
        in_hand = next(file for file in held if file.exists())
        cluster.lose_node_of(int(in_hand.read_text()))
        run.wait_for(lambda: faults.marks("gone.LOST"), "the driver has seen that the node is lost")
        cluster.add_node()
        run.wait_for(lambda: faults.marks("made") == 3, "an actor on the new node")
        faults.go()
        assert run.end() == 0, run.output
    assert faults.marks("gone.LOST") == 1
    assert faults.marks("gone.DIED") == 0
    assert faults.marks(in_hand.name) == 2
    score_here(score_config(shards, tmp_path / "expected", teacher))
    assert rows_of(out) == rows_of(tmp_path / "expected")
    assert leftovers(out) == []
