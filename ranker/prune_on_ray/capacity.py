"""What the cluster holds of a prune run's actors, and waiting for the first place."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import ray

from patchsieve.pipeline.cluster.capacity import Capacity, capacity_for
from patchsieve.pipeline.cluster.nodes import ClusterView, autoscaler_gpus, cluster_nodes, keep_off
from patchsieve.pipeline.cluster.room import Room
from patchsieve.pipeline.errors import PatchsieveError, UserError, last_line
from patchsieve.pipeline.score_on_ray.patience import Patience
from patchsieve.ranker.prune.config import PruneConfig
from patchsieve.ranker.prune_on_ray.probe import CHECK_S

_log = logging.getLogger(__name__)


def capacity_of(config: PruneConfig) -> Capacity:
    """Of the cluster as it is. Raises UserError where nodes take actors, and none holds one of this size."""
    growing = autoscaler_gpus()
    capacity = capacity_for(config, cluster_nodes(), autoscaler_gpus=growing)
    size = capacity.size
    if not capacity.slots and not growing and any(node.cpus >= 1 or node.gpus for node in capacity.nodes):
        raise UserError(
            f"no node holds an actor of {size.cpus} CPUs and {size.gpus:g} GPUs: change --cpus-per-actor or "
            "--gpus-per-actor"
        )
    return capacity


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
