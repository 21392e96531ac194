"""How large actors are and how many there should be, on clusters that need not exist."""

from __future__ import annotations

from typing import Any

import pytest

from patchrank.pipeline.actor_slots import (
    MOST_DECODE_CPUS,
    ActorSize,
    NodeResources,
    choose_size,
    count_slots,
    wanted_actors,
)
from patchrank.pipeline.errors import UserError

HEAD = NodeResources(cpus=0, gpus=0)
CPU_8 = NodeResources(cpus=8, gpus=0)
GPU_8 = NodeResources(cpus=64, gpus=8)
GPU_1 = NodeResources(cpus=4, gpus=1)


@pytest.mark.parametrize(
    ("nodes", "asked", "size"),
    [
        # A GPU each, and an even share of its node's CPUs to decode with.
        ([GPU_8], {}, ActorSize(cpus=8, gpus=1)),
        ([GPU_8, GPU_1], {}, ActorSize(cpus=4, gpus=1)),
        ([GPU_8], {"gpus_per_actor": 2}, ActorSize(cpus=16, gpus=2)),
        ([GPU_8], {"gpus_per_actor": 0.5}, ActorSize(cpus=4, gpus=0.5)),
        ([NodeResources(cpus=128, gpus=1)], {}, ActorSize(cpus=MOST_DECODE_CPUS, gpus=1)),
        ([NodeResources(cpus=2, gpus=4)], {}, ActorSize(cpus=1, gpus=1)),
        # Nodes without GPUs do not matter where others have them.
        ([HEAD, CPU_8, GPU_1], {}, ActorSize(cpus=4, gpus=1)),
        # GPUs that only the autoscaler could bring are waited for.
        ([HEAD], {"autoscaler_gpus": 8}, ActorSize(cpus=MOST_DECODE_CPUS, gpus=1)),
        # CPUs: only asked for, or where there is nothing else.
        ([CPU_8], {}, ActorSize(cpus=8, gpus=0)),
        ([GPU_8], {"gpus_per_actor": 0}, ActorSize(cpus=64, gpus=0)),
        ([CPU_8], {"max_actors": 2}, ActorSize(cpus=4, gpus=0)),
        ([CPU_8, CPU_8], {"max_actors": 3}, ActorSize(cpus=4, gpus=0)),
        ([CPU_8], {"max_actors": 100}, ActorSize(cpus=1, gpus=0)),
        ([CPU_8, NodeResources(cpus=4, gpus=0)], {}, ActorSize(cpus=4, gpus=0)),
        ([CPU_8], {"cpus_per_actor": 3}, ActorSize(cpus=3, gpus=0)),
        ([GPU_8], {"cpus_per_actor": 2}, ActorSize(cpus=2, gpus=1)),
    ],
)
def test_size_of_an_actor(nodes: list[NodeResources], asked: dict[str, Any], size: ActorSize) -> None:
    options: dict[str, Any] = {"gpus_per_actor": 1.0, "cpus_per_actor": None, "max_actors": None}
    assert choose_size(nodes, **{**options, **asked}) == size


def test_a_cluster_without_any_processor_is_told() -> None:
    with pytest.raises(UserError, match="no CPUs to score on"):
        choose_size([HEAD], gpus_per_actor=1, cpus_per_actor=None, max_actors=None)


@pytest.mark.parametrize(
    ("size", "slots"),
    [
        (ActorSize(cpus=8, gpus=1), 8),
        (ActorSize(cpus=4, gpus=1), 9),
        (ActorSize(cpus=1, gpus=0.5), 18),
        (ActorSize(cpus=8, gpus=0), 9),
        (ActorSize(cpus=100, gpus=0), 0),
    ],
)
def test_actors_that_fit(size: ActorSize, slots: int) -> None:
    assert count_slots([HEAD, CPU_8, GPU_8, GPU_1], size) == slots


@pytest.mark.parametrize(
    ("slots", "unfinished", "most", "wanted"),
    [
        (8, 100, None, 8),
        (8, 3, None, 3),
        # One is asked for although nothing has room: a cluster may grow.
        (0, 3, None, 1),
        (0, 0, None, 0),
        # All that may be, whatever there is room for now: what waits is demand for an autoscaler.
        (2, 100, 16, 16),
        (8, 100, 4, 4),
        (8, 3, 4, 3),
    ],
)
def test_actors_wanted(slots: int, unfinished: int, most: int | None, wanted: int) -> None:
    assert wanted_actors(slots=slots, unfinished=unfinished, max_actors=most) == wanted
