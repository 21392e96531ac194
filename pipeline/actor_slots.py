"""How many actors a cluster has room for, and how large each is: pure arithmetic over node resources."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from patchrank.pipeline.errors import UserError

MOST_DECODE_CPUS = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class NodeResources:
    """What one node has in all."""

    cpus: float
    gpus: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActorSize:
    """What one actor asks for. CPUs decode beside a GPU; without one they run the teacher as well."""

    cpus: int
    gpus: float


def choose_size(
    nodes: Sequence[NodeResources],
    *,
    gpus_per_actor: float,
    cpus_per_actor: int | None,
    max_actors: int | None,
    autoscaler_gpus: float = 0.0,
) -> ActorSize:
    """The size of every actor of a run.

    GPUs are asked for unless `gpus_per_actor` is 0 or neither the nodes nor the autoscaler have any. The default
    for CPUs is an even share: of a GPU node's CPUs for each actor its GPUs hold, of a CPU node's for the actors
    asked for, or all of them.
    """
    cpu_nodes = [node for node in nodes if node.cpus >= 1]
    gpu_nodes = [node for node in nodes if node.gpus > 0]
    if gpus_per_actor > 0 and (gpu_nodes or autoscaler_gpus > 0):
        if cpus_per_actor is None:
            shares = [node.cpus // max(1.0, node.gpus // gpus_per_actor) for node in gpu_nodes]
            cpus_per_actor = int(max(1, min([*shares, MOST_DECODE_CPUS])))
        return ActorSize(cpus=cpus_per_actor, gpus=gpus_per_actor)
    if cpus_per_actor is None:
        if not cpu_nodes:
            raise UserError("the cluster has no CPUs to score on; add nodes or give --cpus-per-actor")
        smallest = min(node.cpus for node in cpu_nodes)
        per_node = -(-max_actors // len(cpu_nodes)) if max_actors else 1
        cpus_per_actor = max(1, int(smallest // per_node))
    return ActorSize(cpus=cpus_per_actor, gpus=0.0)


def count_slots(nodes: Sequence[NodeResources], size: ActorSize) -> int:
    """How many actors of this size the nodes hold when they hold nothing else."""
    return sum(
        int(min(node.cpus // size.cpus, node.gpus // size.gpus if size.gpus else float("inf")))
        for node in nodes
    )


def wanted_actors(*, slots: int, unfinished: int, max_actors: int | None) -> int:
    """How many actors should exist now.

    With `max_actors` that many are asked for whatever the cluster holds: those that wait are what an autoscaler
    sees as demand. One is asked for at the least, so that an empty cluster may grow.
    """
    return min(unfinished, max_actors if max_actors is not None else max(1, slots))
