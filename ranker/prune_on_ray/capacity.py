"""What a cluster holds of a prune run's actors: their size, how many, and waiting for the first of them."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from typing import Any

import ray

from patchsieve.pipeline.cluster.nodes import ClusterView, autoscaler_gpus, cluster_nodes, keep_off
from patchsieve.pipeline.cluster.room import Room
from patchsieve.pipeline.cluster.slots import ActorSize, choose_size, count_slots, spared_node
from patchsieve.pipeline.errors import PatchsieveError, UserError
from patchsieve.pipeline.score_on_ray.patience import Patience
from patchsieve.ranker.prune.config import PruneConfig
from patchsieve.ranker.prune_on_ray.probe import CHECK_S, last_line

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Capacity:
    """What an actor asks for, how many the cluster holds now, and how many its autoscaler's GPUs would hold.

    `not_on`: id of a node that takes no actor, "" for none.
    """

    size: ActorSize
    slots: int
    coming: int
    not_on: str


def capacity_of(config: PruneConfig) -> Capacity:
    """Of the cluster as it is. Raises UserError where nodes take actors, and none holds one of this size."""
    every, growing = cluster_nodes(), autoscaler_gpus()
    not_on = spared_node(every, config.head_node, growing=growing > 0)
    nodes = [node for node in every if node.node_id != not_on]
    size = choose_size(
        nodes,
        gpus_per_actor=config.gpus_per_actor,
        cpus_per_actor=config.cpus_per_actor,
        max_actors=config.max_actors,
        autoscaler_gpus=growing,
    )
    slots = count_slots(nodes, size)
    if not slots and not growing and any(node.cpus >= 1 or node.gpus for node in nodes):
        raise UserError(
            f"no node holds an actor of {size.cpus} CPUs and {size.gpus:g} GPUs: change --cpus-per-actor or "
            "--gpus-per-actor"
        )
    return Capacity(
        size=size, slots=slots, coming=int(growing / size.gpus) if size.gpus else 0, not_on=not_on
    )


class _Place:
    def here(self) -> None:
        """Answers when it has a place."""


def wait_for_capacity(config: PruneConfig, check: Callable[[], None]) -> None:
    """Return when an actor has a place; `check` is called meanwhile.

    Others that have all places are waited for, and told; nodes that are to come for `--start-timeout`. Raises
    UserError where none can come, PatchsieveError where none came.
    """
    capacity = capacity_of(config)
    view = ClusterView(not_on=capacity.not_on)
    view.look()
    if view.room_for(capacity.size) is Room.FREE:
        return
    patience = Patience(capacity.size, config.start_timeout, view, now=time.monotonic())
    remote: Any = ray.remote(_Place)
    # Asked for, so that an autoscaler sees that it is wanted.
    actor = remote.options(
        num_cpus=capacity.size.cpus, num_gpus=capacity.size.gpus, label_selector=keep_off(capacity.not_on)
    ).remote()
    answer, told = actor.here.remote(), ""
    try:
        while not ray.wait([answer], timeout=CHECK_S)[0]:
            check()
            view.look()
            patience.look(time.monotonic(), placed=False)
            if patience.waits_for != told:
                told = patience.waits_for
                _log.warning("waiting for a place%s", f", which others have: {told}" if told else "")
            if patience.late(time.monotonic()):
                raise patience.complain()
        ray.get(answer)
    except ray.exceptions.RayError as error:
        raise PatchsieveError(f"an actor could not start: {last_line(error)}") from error
    finally:
        ray.kill(actor, no_restart=True)
