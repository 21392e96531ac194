"""The one file that uses Ray's private API: what it is asked for there, and why nothing public tells it.

Checked against Ray 2.60, to whose minor releases the project is pinned; `ray.util.state`, the public door to most of
this, is alpha and answers only where a dashboard runs, which a local run starts without.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import ray
from ray._common.constants import HEAD_NODE_RESOURCE_NAME
from ray.core.generated.gcs_pb2 import ActorTableData  # type: ignore[attr-defined]

_LEVEL = "RAY_BACKEND_LOG_LEVEL"


def is_head(node: Mapping[str, Any]) -> bool:
    """Whether an entry of `ray.nodes()` is the cluster's head.

    The head has a resource of its own, whose name is a private constant; `ray.nodes()` tells it in no other way.
    """
    return HEAD_NODE_RESOURCE_NAME in node["Resources"]


def drain_deadlines_ms() -> dict[str, int]:
    """Deadline by node id of the nodes that are being drained, in milliseconds of Unix time; 0 where none was told.

    To `ray.nodes()` such a node is as alive as any other until it ends; its actors are to hear of it before that.
    """
    deadlines: dict[str, int] = ray._private.state.state.get_draining_nodes()
    return deadlines


def autoscaler_limits() -> dict[str, int]:
    """The most of each resource that the cluster's autoscaler may bring it to; empty without an autoscaler.

    `ray.autoscaler.sdk` takes requests and tells nothing. Without this, a cluster that begins without workers would
    look like one that has no GPUs.
    """
    return ray._private.state.state.get_max_resources_from_cluster_config() or {}


def autoscaler_groups() -> list[tuple[dict[str, float], int]]:
    """The kinds of nodes of the cluster's autoscaler: what each has, and how many there may be, -1 for any number.

    Its limits are sums over nodes, and do not tell whether one node could hold an actor.
    """
    config = ray._private.state.state.get_cluster_config()
    groups = config.node_group_configs if config is not None else ()
    return [(dict(group.resources), group.max_count) for group in groups]


def cluster_address() -> str | None:
    """The address of the cluster that `ray.init` would join here; None where it would start a Ray of its own.

    What is public only joins: `ray.init(address="auto")` joins the Ray of any other program of this machine, too.
    """
    address: str | None = ray._private.services.get_ray_address_from_environment(None, None)  # type: ignore[arg-type]
    return None if address == "local" else address


def local_cpus() -> int:
    """The CPUs that a Ray which starts here would count: fewer than the machine's in a container with a limit."""
    return int(ray._private.utils.get_num_cpus(override_docker_cpu_warning=True))


def free_resources() -> dict[str, dict[str, float]]:
    """What is left of each node's resources, by node id. `ray.available_resources` tells the sum alone."""
    found: dict[str, dict[str, float]] = ray._private.state.available_resources_per_node()
    return found


def jobs_with_actors() -> tuple[list[str], dict[str, str]]:
    """The job ids of living actors that hold something of a node, one for each, and what each job runs, by its id.

    Ray's own helpers hold nothing, and some of them outlive the job that they came with.
    """
    accessor = ray._private.state.state._connect_and_get_accessor()
    actors = map(ActorTableData.FromString, accessor.get_actor_table(None, "ALIVE"))
    return [actor.job_id.hex() for actor in actors if actor.required_resources], {
        job["JobID"]: job["Entrypoint"] for job in ray._private.state.jobs()
    }


def forget_auth_token() -> None:
    """Have Ray read its token again: tokens are rotated, and it keeps the first one as long as the process lives."""
    import ray._raylet as raylet

    loader: Any = raylet.AuthenticationTokenLoader  # type: ignore[attr-defined]
    loader.instance().reset_cache()


def node_of_actor(actor: Any) -> str:
    """Id of the node that an actor is on, or waits for its turn at; empty where there was none yet.

    `actor`: a handle. One that has not answered cannot be asked itself, and the error of its death has no node's id.
    """
    known: dict[str, Any] = ray._private.state.actors(actor._actor_id.hex())
    return str(known.get("Address", {}).get("NodeID", ""))


@contextlib.contextmanager
def own_sigterm() -> Iterator[None]:
    """In the block, in which Ray starts, it leaves SIGTERM to us.

    Its handlers raise SystemExit in the main thread. In the middle of a fork, of which starting is full, that exception
    is lost and Python's lock of logging stays held: whoever tidies up then waits for it until the process is ended.
    """
    given = ray._private.utils.set_sigterm_handler
    ray._private.utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        ray._private.utils.set_sigterm_handler = given


@contextlib.contextmanager
def quiet_driver() -> Iterator[None]:
    """In the block, in which Ray starts, the part of it that is written in C++ tells people nothing from this process.

    Of each actor of Ray Data that may be started again it says, as an error, that it may be. What it reads its level
    from is the environment of the moment at which this process joins; that of Ray's other processes stays as it is.
    """
    given = ray._private.worker.connect

    def connect(*arguments: Any, **options: Any) -> None:
        level, stderr = os.environ.get(_LEVEL), os.dup(2)
        os.environ[_LEVEL] = "fatal"
        local_sink = os.devnull
        with open(local_sink, "wb") as nowhere:
            # It also says that it has read its level; what goes wrong is raised.
            os.dup2(nowhere.fileno(), 2)
        try:
            given(*arguments, **options)
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            os.environ.pop(_LEVEL)
            if level is not None:
                os.environ[_LEVEL] = level

    ray._private.worker.connect = connect
    try:
        yield
    finally:
        ray._private.worker.connect = given


def kill_helpers() -> None:
    """End the processes of the local Ray that only log and watch.

    `ray.shutdown` takes a second to end them in order, of the two in which a stopped run has to be over.
    """
    node: Any = ray._private.worker._global_node
    for kind, processes in node.all_processes.items() if node is not None else ():
        if kind not in ("gcs_server", "raylet"):
            for started in processes:
                started.process.kill()
