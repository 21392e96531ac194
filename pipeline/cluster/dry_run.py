"""Where a dry run measures: on an actor of the cluster that the run would join, else on this machine."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import ray
import torch

from patchsieve.pipeline.cluster.nodes import ClusterView, autoscaler_resources, cluster_nodes
from patchsieve.pipeline.cluster.private_api import cluster_address, local_cpus
from patchsieve.pipeline.cluster.room import Room
from patchsieve.pipeline.cluster.session import ray_session
from patchsieve.pipeline.cluster.slots import NOTHING, ActorSize, NodeResources
from patchsieve.pipeline.cluster.trial import answer_of, start_trial
from patchsieve.pipeline.compute.device import this_device
from patchsieve.pipeline.runs.stop import stop_on_signals

T = TypeVar("T")

HERE = "this machine"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DryRun:
    """What the run would find. `nodes`: of the cluster, or this machine alone; `autoscaler`: what that may bring.

    `joined`: whether there is a cluster.
    """

    nodes: Sequence[NodeResources]
    autoscaler: NodeResources = NOTHING
    joined: bool = False

    def measure(
        self, function: Callable[[torch.device], T], size: ActorSize, *, not_on: str = ""
    ) -> tuple[T, str]:
        """Call a function with its device, as an actor of this size would; what it gives, and where that was.

        `function`: one that can be pickled; `not_on`: id of a node that takes no actor. On a cluster whose nodes have
        no room for such an actor now, this machine is taken, and told. Here a processor works with the threads that an
        actor would have. Raises PatchsieveError where an actor fails, and here what the function raises.
        """
        if self.joined:
            view = ClusterView(not_on=not_on)
            view.look()
            if view.room_for(size) is Room.FREE:
                return _on_cluster(function, size, not_on)
        device = this_device() if size.gpus else torch.device("cpu")
        threads = torch.get_num_threads()
        if device.type == "cpu":
            torch.set_num_threads(size.cpus)
        try:
            found = function(device)
        finally:
            torch.set_num_threads(threads)
        return found, f"{HERE}, as no node has room for an actor now" if self.joined else HERE


@contextlib.contextmanager
def dry_run() -> Iterator[DryRun]:
    """Look at what the run would find: the cluster of this process, of RAY_ADDRESS or of this machine. Starts no Ray.

    Without a cluster it is what a Ray that the run starts here would count.
    """
    if not ray.is_initialized() and cluster_address() is None:
        yield DryRun(nodes=[this_machine()])
        return
    with stop_on_signals(lambda _signal: None) as stop, ray_session(stop):
        yield DryRun(nodes=cluster_nodes(), autoscaler=autoscaler_resources(), joined=True)


def this_machine() -> NodeResources:
    """What a Ray that starts here would count."""
    return NodeResources(cpus=local_cpus(), gpus=torch.cuda.device_count(), node_id=HERE, head=True)


def _on_cluster(function: Callable[[torch.device], T], size: ActorSize, not_on: str) -> tuple[T, str]:
    trial, what = start_trial(size, not_on=not_on), "the dry run could not measure"
    try:
        place, _ = answer_of(trial.where.remote(), what)
        found: T = answer_of(trial.call.remote(function), what)
    finally:
        ray.kill(trial, no_restart=True)
    return found, str(place)
