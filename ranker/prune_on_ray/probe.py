"""The precision of a prune run's ranker, tried where the run's actors will be, before there are any."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from patchsieve.pipeline.cluster.places import Place
from patchsieve.pipeline.cluster.slots import ActorSize
from patchsieve.pipeline.cluster.trial import CHECK_S, answer_of, start_trial
from patchsieve.pipeline.errors import DeviceError, PatchsieveError
from patchsieve.pipeline.output.machine import process_start
from patchsieve.pipeline.row_config import Precision
from patchsieve.ranker.select.patch_scorer import PatchSource, choose_source_precision

_END_S = 30.0
"""Seconds that a killed process is given to end, and the driver to take its memory back."""


def precision_on_cluster(
    source: PatchSource, size: ActorSize, slots: int, check: Callable[[], None], *, not_on: str = ""
) -> Precision:
    """The fastest safe precision of the ranker on an actor of this size; `check` is called while it is tried.

    Nothing of what tried it is left when this returns. A device that fails is held until then, so that the next attempt
    gets another one; `slots` is how many there are, `not_on` a node that takes no actor. Raises PatchsieveError where
    nobody can tell.
    """
    what = "the ranker could not be tried"
    choose = partial(choose_source_precision, source)
    probes: list[Any] = []
    faults: list[str] = []
    homes: list[tuple[Place, int]] = []
    try:
        while True:
            probe = start_trial(size, not_on=not_on)
            probes.append(probe)
            home: tuple[Place, int] = answer_of(probe.where.remote(), what, check)
            homes.append(home)
            try:
                found: Precision = answer_of(probe.call.remote(choose), what, check)
                return found
            except DeviceError as error:
                faults.append(f"{home[0]}: {error}")
            if len(faults) >= slots:
                raise PatchsieveError(f"no device is left to try the ranker on: {'; '.join(faults)}")
    finally:
        for probe in probes:
            ray.kill(probe, no_restart=True)
        _wait_for_end(homes, check)


def _wait_for_end(homes: list[tuple[Place, int]], check: Callable[[], None]) -> None:
    """Wait until these processes have ended, each asked for on its own node: Ray kills without waiting."""
    remote: Any = ray.remote(_ended)
    for place, pid in homes:
        there = NodeAffinitySchedulingStrategy(place.node_id, soft=False)
        asked = remote.options(num_cpus=0, scheduling_strategy=there).remote(pid)
        try:
            while not ray.wait([asked], timeout=CHECK_S)[0]:
                check()
            ended = ray.get(asked)
        except ray.exceptions.RayError:
            continue  # its node is lost, and the process with it
        if not ended:
            raise PatchsieveError(
                f"the process that tried the ranker on {place} does not end, and holds it: {pid}"
            )


def _ended(pid: int) -> bool:
    deadline = time.monotonic() + _END_S
    while process_start(pid) is not None:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
