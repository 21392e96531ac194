"""Where a dry run measures: on an actor of the cluster that the run would join, else on this machine."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from patchsieve.pipeline.cluster.nodes import (
    ClusterView,
    autoscaler_resources,
    cluster_nodes,
    keep_off,
    this_place,
)
from patchsieve.pipeline.cluster.private_api import cluster_address, local_cpus
from patchsieve.pipeline.cluster.room import Room
from patchsieve.pipeline.cluster.session import ray_session
from patchsieve.pipeline.cluster.slots import NOTHING, ActorSize, NodeResources
from patchsieve.pipeline.compute.device import keep_freed_memory, this_device
from patchsieve.pipeline.compute.gpu_faults import assigned_device, device_faults
from patchsieve.pipeline.errors import PatchsieveError, first_line, last_line
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


class _Trial:
    """An actor, since the process of a task stays, and the GPU memory that it holds."""

    def call(self, function: Callable[[torch.device], T]) -> tuple[T, str]:
        keep_freed_memory()
        place = this_place()
        with device_faults(memory=True):
            return function(assigned_device(place.gpus)), str(place)


def _on_cluster(function: Callable[[torch.device], T], size: ActorSize, not_on: str) -> tuple[T, str]:
    remote: Any = ray.remote(_Trial)
    trial = remote.options(num_cpus=size.cpus, num_gpus=size.gpus, label_selector=keep_off(not_on)).remote()
    try:
        found: tuple[T, str] = ray.get(trial.call.remote(function))
        return found
    except RayTaskError as error:
        if isinstance(error.cause, PatchsieveError):
            raise error.cause from error
        cause = f"{type(error.cause).__name__}: {first_line(error.cause)}"
        raise PatchsieveError(f"the dry run could not measure: {cause}") from error
    except RayError as error:
        raise PatchsieveError(f"the dry run could not measure: {last_line(error)}") from error
    finally:
        ray.kill(trial, no_restart=True)
