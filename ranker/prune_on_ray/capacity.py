"""What the cluster holds of a prune run's actors, and waiting for the first place."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import ray

from patchsieve.pipeline.cluster.capacity import Capacity, capacity_for
from patchsieve.pipeline.cluster.nodes import ClusterView, autoscaler_gpus, cluster_nodes
from patchsieve.pipeline.cluster.room import Room
from patchsieve.pipeline.cluster.trial import answer_of, start_trial
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.score_on_ray.patience import Patience
from patchsieve.ranker.prune.config import PruneConfig

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
    patience, told = Patience(capacity.size, config.start_timeout, view, now=time.monotonic()), ""

    def look() -> None:
        nonlocal told
        check()
        view.look()
        patience.look(time.monotonic(), placed=False)
        if patience.waits_for != told:
            told = patience.waits_for
            _log.warning("waiting for a place%s", f", which others have: {told}" if told else "")
        if patience.late(time.monotonic()):
            raise patience.complain()

    # Asked for, so that an autoscaler sees that it is wanted.
    trial = start_trial(capacity.size, not_on=capacity.not_on)
    try:
        answer_of(trial.where.remote(), "an actor could not start", look)
    finally:
        ray.kill(trial, no_restart=True)
