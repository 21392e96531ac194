"""A function that is tried on the cluster, as an actor of a run would call it, before there are any."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from patchsieve.pipeline.cluster.nodes import keep_off, this_place
from patchsieve.pipeline.cluster.places import Place
from patchsieve.pipeline.cluster.slots import ActorSize
from patchsieve.pipeline.compute.device import keep_freed_memory
from patchsieve.pipeline.compute.gpu_faults import assigned_device, device_faults
from patchsieve.pipeline.errors import PatchsieveError, first_line, last_line

T = TypeVar("T")

CHECK_S = 0.5


class Trial:
    """An actor, since the process of a task stays, and the GPU memory that it holds."""

    def where(self) -> tuple[Place, int]:
        """Its place and process number."""
        return this_place(), os.getpid()

    def call(self, function: Callable[[torch.device], T]) -> T:
        """What the function gives for the actor's device. DeviceError where the GPU or its driver is at fault."""
        keep_freed_memory()
        with device_faults(memory=True):
            return function(assigned_device(this_place().gpus))


def start_trial(size: ActorSize, *, not_on: str) -> Any:
    """The handle of an actor of this size; `not_on`: id of a node that does not take it."""
    remote: Any = ray.remote(Trial)
    return remote.options(num_cpus=size.cpus, num_gpus=size.gpus, label_selector=keep_off(not_on)).remote()


def answer_of(reference: Any, what: str, check: Callable[[], None] = lambda: None) -> Any:
    """What a trial answers; `check` is called meanwhile.

    Raises what it raised of our errors, and for any other a PatchsieveError: `what` could not be done, and why.
    """
    try:
        while not ray.wait([reference], timeout=CHECK_S)[0]:
            check()
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, PatchsieveError):
            raise error.cause from error
        raise PatchsieveError(f"{what}: {type(error.cause).__name__}: {first_line(error.cause)}") from error
    except RayError as error:
        raise PatchsieveError(f"{what}: {last_line(error)}") from error
