"""The nodes of a cluster as Ray knows them: living, drained, and what an autoscaler may add."""

from __future__ import annotations

import platform
import time
from collections.abc import Collection, Mapping

import ray

from patchsieve.pipeline.cluster.places import Place
from patchsieve.pipeline.cluster.private_api import (
    autoscaler_groups,
    autoscaler_limits,
    drain_deadlines_ms,
    free_resources,
    is_head,
    jobs_with_actors,
)
from patchsieve.pipeline.cluster.room import NodeGroup, Room, holders, room_for
from patchsieve.pipeline.cluster.slots import ActorSize, NodeResources

_NODE_ID_LABEL = "ray.io/node-id"  # Ray gives it to every node


def this_place() -> Place:
    """Where this task or actor runs, and the GPUs that Ray gave it."""
    context = ray.get_runtime_context()
    return Place(platform.node(), context.get_node_id(), tuple(context.get_accelerator_ids().get("GPU", ())))


def cluster_nodes(leaving: Collection[str] | None = None) -> list[NodeResources]:
    """The living nodes but for those that are `leaving`, by default those that are being drained."""
    leaving = draining_nodes() if leaving is None else leaving
    return [
        NodeResources(
            cpus=node["Resources"].get("CPU", 0.0),
            gpus=node["Resources"].get("GPU", 0.0),
            node_id=node["NodeID"],
            head=is_head(node),
        )
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] not in leaving
    ]


def draining_nodes() -> dict[str, float | None]:
    """Seconds until their end by the ids of the nodes that are being drained; None where no end was told."""
    now = time.time()
    return {
        node: deadline_ms / 1000 - now if deadline_ms else None
        for node, deadline_ms in drain_deadlines_ms().items()
    }


class ClusterView:
    """The nodes as they were a moment ago. `nodes`: those that may take actors; `draining`: see `draining_nodes`."""

    def __init__(self, *, not_on: str = "") -> None:
        """`not_on`: id of a node that takes no actor."""
        self._not_on = not_on
        self.nodes: dict[str, NodeResources] = {}
        self.draining: dict[str, float | None] = {}

    def look(self) -> None:
        """Take down how they are now."""
        self.draining = draining_nodes()
        self.nodes = {
            node.node_id: node for node in cluster_nodes(self.draining) if node.node_id != self._not_on
        }

    def may_grow(self) -> bool:
        """Whether an autoscaler may bring more GPUs than there are."""
        return autoscaler_gpus() > sum(node.gpus for node in self.nodes.values())

    def room_for(self, size: ActorSize) -> Room:
        """What one more actor of this size waits for now; see `room_for`."""
        free = {key: _resources(left, key) for key, left in free_resources().items()}
        groups = [
            NodeGroup(node=_resources(each), most=None if most < 0 else most)
            for each, most in autoscaler_groups()
        ]
        return room_for(size, nodes=list(self.nodes.values()), free=free, groups=groups)

    def __str__(self) -> str:
        """What the nodes have, for people."""
        listed = [f"{node.cpus:g} CPUs + {node.gpus:g} GPUs" for node in self.nodes.values()]
        return (", ".join(listed) or "nothing") + (", the head left out" if self._not_on else "")


def keep_off(node_id: str) -> dict[str, str] | None:
    """The `label_selector` of an actor that must not run on a node; None for no node."""
    return {_NODE_ID_LABEL: f"!{node_id}"} if node_id else None


def others_at_work() -> str:
    """The other jobs of this cluster that hold something of it, for people; "" for none."""
    own = ray.get_runtime_context().get_job_id()
    jobs, commands = jobs_with_actors()
    return holders((job for job in jobs if job != own), commands)


def _resources(told: Mapping[str, float], node_id: str = "") -> NodeResources:
    return NodeResources(cpus=told.get("CPU", 0.0), gpus=told.get("GPU", 0.0), node_id=node_id)


def autoscaler_gpus() -> float:
    """GPUs that the cluster's autoscaler may bring it to; 0 where there is none."""
    return autoscaler_resources().gpus


def autoscaler_resources() -> NodeResources:
    """What the cluster's autoscaler may bring it to in all; nothing where there is none."""
    limits = autoscaler_limits()
    return NodeResources(cpus=float(limits.get("CPU", 0)), gpus=float(limits.get("GPU", 0)))
