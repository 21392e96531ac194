"""The three cases of a cluster that gives no actor, over nodes that need not exist."""

from __future__ import annotations

import pytest

from patchsieve.pipeline.cluster.room import NodeGroup, Room, holders, room_for
from patchsieve.pipeline.cluster.slots import ActorSize, NodeResources

GPU, CPU = ActorSize(cpus=4, gpus=1), ActorSize(cpus=4, gpus=0)


def node(cpus: float, gpus: float, name: str = "") -> NodeResources:
    return NodeResources(cpus=cpus, gpus=gpus, node_id=name)


def group(most: int | None, cpus: float = 8, gpus: float = 1) -> NodeGroup:
    return NodeGroup(node=node(cpus, gpus), most=most)


@pytest.mark.parametrize(
    ("nodes", "free", "groups", "room"),
    [
        # Room on one node; CPUs on one and a GPU on the other are none.
        ([node(8, 1, "a")], {"a": node(8, 1)}, [], Room.FREE),
        ([node(8, 1, "a"), node(8, 1, "b")], {"a": node(8, 0), "b": node(2, 1)}, [], Room.TAKEN),
        # A node that has just joined and tells of nothing yet has no room.
        ([node(8, 1, "a")], {}, [], Room.TAKEN),
        # Nothing could hold it: no node, or only too small ones, of the autoscaler's too.
        ([], {}, [], Room.NEVER),
        ([node(8, 0, "a"), node(2, 1, "b")], {"a": node(8, 0), "b": node(2, 1)}, [], Room.NEVER),
        ([node(8, 0, "a")], {"a": node(8, 0)}, [group(16, cpus=2)], Room.NEVER),
        ([], {}, [group(0)], Room.NEVER),
        # Something may come, until all there may be is there.
        ([], {}, [group(1)], Room.COMING),
        ([node(8, 1, "a")], {"a": node(0, 0)}, [group(2)], Room.COMING),
        ([node(8, 1, "a")], {"a": node(0, 0)}, [group(None)], Room.COMING),
        ([node(8, 1, "a")], {"a": node(0, 0)}, [group(1), group(9, gpus=0)], Room.TAKEN),
    ],
)
def test_what_an_actor_waits_for(
    nodes: list[NodeResources], free: dict[str, NodeResources], groups: list[NodeGroup], room: Room
) -> None:
    assert room_for(GPU, nodes=nodes, free=free, groups=groups) is room


def test_without_gpus_cpus_decide() -> None:
    taken = {"a": node(3, 1)}
    assert room_for(CPU, nodes=[node(8, 1, "a")], free=taken, groups=[]) is Room.TAKEN
    assert room_for(CPU, nodes=[node(8, 1, "a")], free={"a": node(4, 0)}, groups=[]) is Room.FREE


def test_who_has_the_cluster() -> None:
    assert holders([], {}) == ""
    told = holders(["02"] * 3 + ["03", "04", "05"], {"02": "patchsieve score x"})
    assert told.startswith("job 02 (patchsieve score x): 3 actors, job 03 (unknown): 1 actors, ")
    assert told.endswith(", ...")
