"""How many actors of prune a cluster holds, on clusters that need not exist."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from patchsieve.pipeline.cluster.slots import ActorSize, NodeResources
from patchsieve.pipeline.errors import UserError
from patchsieve.ranker.prune_on_ray import capacity
from tests.helpers.prune_runs import prune_config
from tests.helpers.score_processes import wait_until

HEAD = NodeResources(cpus=4, gpus=0, node_id="head", head=True)
BARE_HEAD = NodeResources(cpus=0, gpus=0, node_id="head", head=True)
WORKER = NodeResources(cpus=8, gpus=1, node_id="w")


@pytest.mark.parametrize(
    ("nodes", "growing", "asked", "expected"),
    [
        ([HEAD], 0.0, {}, (ActorSize(cpus=4, gpus=0), 1, 0, "")),
        ([HEAD, WORKER], 0.0, {}, (ActorSize(cpus=8, gpus=1), 1, 0, "head")),
        (
            [HEAD, WORKER],
            0.0,
            {"head_node": "use", "gpus_per_actor": 0.0},
            (ActorSize(cpus=4, gpus=0), 3, 0, ""),
        ),
        # Nothing there yet: GPUs are what is waited for, of an autoscaler or of nodes that join.
        ([HEAD], 8.0, {}, (ActorSize(cpus=1, gpus=1), 0, 8, "head")),
        ([BARE_HEAD], 0.0, {}, (ActorSize(cpus=1, gpus=1), 0, 0, "")),
        ([HEAD], 0.0, {"head_node": "spare"}, (ActorSize(cpus=1, gpus=1), 0, 0, "head")),
    ],
)
def test_what_a_cluster_holds(
    nodes: list[NodeResources],
    growing: float,
    asked: dict[str, Any],
    expected: tuple[ActorSize, int, int, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(capacity, "cluster_nodes", lambda: nodes)
    monkeypatch.setattr(capacity, "autoscaler_gpus", lambda: growing)
    options = {"cpus_per_actor": None, "max_actors": None, "gpus_per_actor": 1.0, **asked}
    found = capacity.capacity_of(prune_config(["a.tar"], "out", "baseline:variance", **options))
    assert (found.size, found.slots, found.coming, found.not_on) == expected


def test_an_actor_that_no_node_holds_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "cluster_nodes", lambda: [WORKER])
    monkeypatch.setattr(capacity, "autoscaler_gpus", lambda: 0.0)
    with pytest.raises(UserError, match="no node holds an actor of 9 CPUs and 1 GPUs"):
        capacity.capacity_of(
            prune_config(["a.tar"], "out", "baseline:variance", cpus_per_actor=9, gpus_per_actor=1.0)
        )


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_place_that_others_have_is_waited_for() -> None:
    class Greedy:
        def here(self) -> None:
            """Answers when all processors are taken."""

    remote: Any = ray.remote
    greedy = remote(num_cpus=4)(Greedy).remote()
    ray.get(greedy.here.remote())
    # Nodes tell what is taken a moment later.
    wait_until(lambda: not ray.available_resources().get("CPU"), "all processors are seen to be taken")
    checks: list[bool] = []

    def check() -> None:
        checks.append(True)
        if len(checks) == 2:
            ray.kill(greedy)

    capacity.wait_for_capacity(prune_config(["a.tar"], "out", "baseline:variance"), check)
    assert len(checks) >= 2


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_place_that_never_comes_is_told() -> None:
    with pytest.raises(UserError, match="no node holds an actor of 99 CPUs"):
        capacity.wait_for_capacity(
            prune_config(["a.tar"], "out", "baseline:variance", cpus_per_actor=99), lambda: None
        )
