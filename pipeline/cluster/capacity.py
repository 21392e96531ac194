"""What a cluster holds of a run's actors: which nodes take them, how large each is, how many there may be. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from patchsieve.pipeline.cluster.slots import (
    ActorSize,
    HeadUse,
    NodeResources,
    choose_size,
    count_slots,
    spared_node,
)


class ActorSettings(Protocol):
    """The settings of a run that say what its actors ask for: those of score and prune."""

    @property
    def head_node(self) -> HeadUse:
        """Whether the cluster's head takes actors."""

    @property
    def gpus_per_actor(self) -> float:
        """GPUs of each actor, 0 for processors."""

    @property
    def cpus_per_actor(self) -> int | None:
        """CPUs of each actor, None for an even share."""

    @property
    def max_actors(self) -> int | None:
        """The most actors, None for as many as there is room for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Capacity:
    """What an actor asks for, how many the nodes hold now, and how many the autoscaler's GPUs would hold.

    `nodes`: those that take actors; `not_on`: id of a node that takes none, "" for no such node.
    """

    size: ActorSize
    nodes: Sequence[NodeResources]
    slots: int
    coming: int
    not_on: str


def capacity_for(
    settings: ActorSettings, nodes: Sequence[NodeResources], *, autoscaler_gpus: float
) -> Capacity:
    """Of a cluster of these nodes, whose autoscaler may bring it to so many GPUs. Raises what `choose_size` raises."""
    not_on = spared_node(nodes, settings.head_node, growing=autoscaler_gpus > 0)
    taking = [node for node in nodes if node.node_id != not_on]
    size = choose_size(
        taking,
        gpus_per_actor=settings.gpus_per_actor,
        cpus_per_actor=settings.cpus_per_actor,
        max_actors=settings.max_actors,
        autoscaler_gpus=autoscaler_gpus,
    )
    return Capacity(
        size=size,
        nodes=taking,
        slots=count_slots(taking, size),
        coming=int(autoscaler_gpus / size.gpus) if size.gpus else 0,
        not_on=not_on,
    )
