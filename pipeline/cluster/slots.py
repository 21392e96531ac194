"""How many actors a cluster has room for, and how large each is: pure arithmetic over node resources."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from patchsieve.pipeline.errors import UserError

MOST_DECODE_CPUS = 16

HeadUse = Literal["auto", "use", "spare"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NodeResources:
    """What one node has in all. `head`: whether it is the cluster's head."""

    cpus: float
    gpus: float
    node_id: str = ""
    head: bool = False


NOTHING = NodeResources(cpus=0, gpus=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActorSize:
    """What one actor asks for. CPUs decode beside a GPU; without one they run the teacher as well."""

    cpus: int
    gpus: float


def per_place(size: ActorSize) -> int:
    """Actors that share one place: a GPU where each takes a part of one, else each has its own."""
    return int(1 / size.gpus) if 0 < size.gpus < 1 else 1


def choose_size(
    nodes: Sequence[NodeResources],
    *,
    gpus_per_actor: float,
    cpus_per_actor: int | None,
    max_actors: int | None,
    autoscaler_gpus: float = 0.0,
) -> ActorSize:
    """The size of every actor of a run. `nodes`: those that may take actors.

    GPUs are asked for unless `gpus_per_actor` is 0 or there are only CPUs: where there is neither, as on a cluster that
    begins without workers, GPUs are what is waited for. The default for CPUs is an even share: of a GPU node's CPUs
    for each actor its GPUs hold, one while no GPU node is known; of a CPU node's for the actors asked for, or all.
    """
    cpu_nodes = [node for node in nodes if node.cpus >= 1]
    gpu_nodes = [node for node in nodes if node.gpus > 0]
    if gpus_per_actor > 0 and (gpu_nodes or autoscaler_gpus > 0 or not cpu_nodes):
        if cpus_per_actor is None:
            cpus_per_actor = min((decode_share(node, gpus_per_actor) for node in gpu_nodes), default=1)
        return ActorSize(cpus=cpus_per_actor, gpus=gpus_per_actor)
    if cpus_per_actor is None:
        if not cpu_nodes:
            raise UserError(
                "no node has CPUs to score on; add nodes, or give --cpus-per-actor to wait for some"
            )
        smallest = min(node.cpus for node in cpu_nodes)
        per_node = -(-max_actors // len(cpu_nodes)) if max_actors else 1
        cpus_per_actor = max(1, int(smallest // per_node))
    return ActorSize(cpus=cpus_per_actor, gpus=0.0)


def worker_size(
    nodes: Sequence[NodeResources], *, gpus_per_worker: float, autoscaler: NodeResources
) -> tuple[ActorSize, int]:
    """What each worker of a training asks for, and how many the cluster, or what its autoscaler may bring, holds.

    It asks for a CPU, and beside it for a GPU where `choose_size` asks for one.
    """
    size = choose_size(
        nodes,
        gpus_per_actor=gpus_per_worker,
        cpus_per_actor=1,
        max_actors=None,
        autoscaler_gpus=autoscaler.gpus,
    )
    return size, max(count_slots(nodes, size), count_slots([autoscaler], size))


def check_workers(workers: int | Literal["auto"], size: ActorSize, room: int) -> None:
    """Raise UserError where there is no room for so many workers, or for none of `auto`: they would wait for ever."""
    if room < (1 if workers == "auto" else workers):
        each = f"{size.gpus:g} GPUs" if size.gpus else "1 CPU"
        less = ", or --gpus-per-worker 0 for processors" if size.gpus else ""
        raise UserError(
            f"--workers {workers} of {each} each: the cluster holds {room}; ask for fewer, add nodes{less}"
        )


def decode_share(node: NodeResources, gpus: float) -> int:
    """CPUs that decode beside an actor of so many GPUs: an even share of its node's, from 1 to 16."""
    return int(max(1, min(node.cpus // max(1, _on_gpus(node, gpus)), MOST_DECODE_CPUS)))


def count_slots(nodes: Sequence[NodeResources], size: ActorSize) -> int:
    """How many actors of this size the nodes hold when they hold nothing else."""
    return sum(
        int(min(node.cpus // size.cpus, _on_gpus(node, size.gpus) if size.gpus else float("inf")))
        for node in nodes
    )


def _on_gpus(node: NodeResources, gpus: float) -> int:
    if gpus >= 1:
        return int(node.gpus // gpus)
    # A share lies on one GPU. Rounded, because 1 // 0.1 is 9.
    return int(node.gpus) * int(round(1 / gpus, 6))


def spared_node(nodes: Sequence[NodeResources], head: HeadUse, *, growing: bool) -> str:
    """Id of the node that takes no actor: the head, if asked so, or by itself where other nodes are there or to come.

    Empty where every node takes actors.
    """
    alone = all(node.head for node in nodes) and not growing
    if head == "use" or (head == "auto" and alone):
        return ""
    return next((node.node_id for node in nodes if node.head), "")


def wanted_actors(*, slots: int, unfinished: int, max_actors: int | None) -> int:
    """How many actors should exist now.

    With `max_actors` that many are asked for whatever the cluster holds: those that wait are what an autoscaler
    sees as demand. One is asked for at the least, so that an empty cluster may grow.
    """
    return min(unfinished, max_actors if max_actors is not None else max(1, slots))
