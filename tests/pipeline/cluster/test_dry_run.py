"""A dry run measures as an actor would: on the nodes of the cluster, with the devices and threads of an actor."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import pytest
import ray
import torch

from patchsieve.pipeline.cluster.dry_run import HERE, DryRun, dry_run, this_machine
from patchsieve.pipeline.cluster.nodes import this_place
from patchsieve.pipeline.cluster.private_api import cluster_address
from patchsieve.pipeline.cluster.slots import ActorSize
from patchsieve.pipeline.errors import PatchsieveError, UserError


def seen(device: torch.device) -> tuple[int, int, str]:
    return os.getpid(), torch.get_num_threads(), device.type


def place(device: torch.device) -> str:
    return str(this_place())


def failing(device: torch.device, *, error: Exception) -> None:
    raise error


def test_without_a_cluster_it_is_this_machine_with_an_actors_threads() -> None:
    run = DryRun(nodes=[this_machine()])
    assert 1 <= run.nodes[0].cpus <= (os.cpu_count() or 1)
    before = torch.get_num_threads()
    assert run.measure(seen, ActorSize(cpus=before + 1, gpus=0)) == (
        (os.getpid(), before + 1, "cpu"),
        "this machine",
    )
    with pytest.raises(UserError, match="no image"):
        run.measure(partial(failing, error=UserError("no image")), ActorSize(cpus=before + 1, gpus=0))
    assert torch.get_num_threads() == before


def test_a_cluster_that_a_run_would_join_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert cluster_address() == "10.0.0.1:6379"
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert cluster_address() is None


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_on_a_cluster_an_actor_of_the_runs_size_measures() -> None:
    with dry_run() as run:
        (pid, threads, device), where = run.measure(seen, ActorSize(cpus=2, gpus=1))
        assert (threads, device) == (2, "cpu")  # a declared GPU, in tests
        assert pid != os.getpid()
        assert where.startswith("GPU ")
        on_cpus, told = run.measure(place, ActorSize(cpus=1, gpus=0))
        assert on_cpus == told
        assert told.startswith("node ")
        with pytest.raises(UserError, match=r"^no image$"):
            run.measure(partial(failing, error=UserError("no image")), ActorSize(cpus=1, gpus=0))
        with pytest.raises(PatchsieveError, match=r"^the dry run could not measure: ValueError: one$"):
            run.measure(partial(failing, error=ValueError("one\ntwo")), ActorSize(cpus=1, gpus=0))


class Holder:
    def here(self) -> None:
        """Answers when it has a place."""


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_where_others_have_the_cluster_this_machine_measures_and_is_told() -> None:
    remote: Any = ray.remote(Holder)
    holder = remote.options(num_gpus=2).remote()
    ray.get(holder.here.remote())
    try:
        with dry_run() as run:
            (pid, _, _), where = run.measure(seen, ActorSize(cpus=1, gpus=1))
    finally:
        ray.kill(holder)
    assert (pid, where) == (os.getpid(), f"{HERE}, as no node has room for an actor now")
