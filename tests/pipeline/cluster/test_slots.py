"""How large actors are and how many there should be, on clusters that need not exist."""

from __future__ import annotations

from typing import Any

import pytest

from patchsieve.pipeline.cluster.slots import (
    MOST_DECODE_CPUS,
    NOTHING,
    ActorSize,
    HeadUse,
    NodeResources,
    check_workers,
    choose_size,
    count_slots,
    decode_share,
    spared_node,
    wanted_actors,
    worker_size,
)
from patchsieve.pipeline.errors import UserError

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
        # GPUs that only the autoscaler could bring are waited for, and where there is nothing at all yet. How many
        # CPUs their nodes have is not known.
        ([CPU_8], {"autoscaler_gpus": 8}, ActorSize(cpus=1, gpus=1)),
        ([HEAD], {}, ActorSize(cpus=1, gpus=1)),
        ([HEAD], {"gpus_per_actor": 0.5, "cpus_per_actor": 3}, ActorSize(cpus=3, gpus=0.5)),
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
    with pytest.raises(UserError, match="no node has CPUs to score on"):
        choose_size([HEAD], gpus_per_actor=0, cpus_per_actor=None, max_actors=None)


@pytest.mark.parametrize(
    ("size", "slots"),
    [
        (ActorSize(cpus=8, gpus=1), 8),
        (ActorSize(cpus=4, gpus=1), 9),
        (ActorSize(cpus=1, gpus=0.5), 18),
        (ActorSize(cpus=8, gpus=0), 9),
        (ActorSize(cpus=100, gpus=0), 0),
        # A share lies on one GPU: three of 0.3 each.
        (ActorSize(cpus=1, gpus=0.3), 8 * 3 + 3),
        (ActorSize(cpus=1, gpus=0.1), 64 + 4),
        (ActorSize(cpus=1, gpus=2), 4),
    ],
)
def test_actors_that_fit(size: ActorSize, slots: int) -> None:
    assert count_slots([HEAD, CPU_8, GPU_8, GPU_1], size) == slots


def test_decoders_beside_a_gpu_are_those_of_its_own_node() -> None:
    assert [decode_share(node, 1) for node in (GPU_8, GPU_1)] == [8, 4]
    assert [decode_share(node, 0.5) for node in (GPU_8, GPU_1)] == [4, 2]
    assert decode_share(NodeResources(cpus=128, gpus=1), 1) == MOST_DECODE_CPUS
    assert decode_share(NodeResources(cpus=1, gpus=4), 1) == 1


@pytest.mark.parametrize(
    ("head", "others", "growing", "spared"),
    [
        # One machine, or a cluster of one node: the work is on its head.
        ("auto", 0, False, ""),
        ("auto", 1, False, "head"),
        ("auto", 0, True, "head"),
        ("use", 1, True, ""),
        ("spare", 0, False, "head"),
    ],
)
def test_the_head_is_spared_where_others_can_do_the_work(
    head: HeadUse, others: int, growing: bool, spared: str
) -> None:
    nodes = [NodeResources(cpus=4, gpus=1, node_id="head", head=True)]
    nodes += [NodeResources(cpus=4, gpus=1, node_id=f"node-{number}") for number in range(others)]
    assert spared_node(nodes, head, growing=growing) == spared


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


@pytest.mark.parametrize(
    ("nodes", "autoscaler", "gpus_per_worker", "size", "room"),
    [
        # The driver's machine, the head, has none of the GPUs.
        ([HEAD, GPU_8], NOTHING, 1, ActorSize(cpus=1, gpus=1), 8),
        # No worker node yet: GPUs are what the autoscaler brings.
        ([CPU_8], NodeResources(cpus=64, gpus=4), 1, ActorSize(cpus=1, gpus=1), 4),
        ([CPU_8, GPU_1], NOTHING, 0, ActorSize(cpus=1, gpus=0), 12),
        ([CPU_8], NOTHING, 1, ActorSize(cpus=1, gpus=0), 8),
        ([GPU_1], NOTHING, 0.5, ActorSize(cpus=1, gpus=0.5), 2),
        # More may be there already than the autoscaler would bring.
        ([GPU_8, GPU_8], NodeResources(cpus=8, gpus=8), 1, ActorSize(cpus=1, gpus=1), 16),
    ],
)
def test_workers_of_a_training(
    nodes: list[NodeResources], autoscaler: NodeResources, gpus_per_worker: float, size: ActorSize, room: int
) -> None:
    found = worker_size(nodes, gpus_per_worker=gpus_per_worker, autoscaler=autoscaler)
    assert found == (size, room)
    check_workers(room, size, room)
    check_workers("auto", size, room)
    with pytest.raises(
        UserError, match=f"--workers {room + 1} of .* each: the cluster holds {room}; ask for"
    ):
        check_workers(room + 1, size, room)


def test_workers_that_would_wait_for_ever_are_refused() -> None:
    with pytest.raises(UserError, match=r"--workers auto of 1 GPUs each: .* 0; .*--gpus-per-worker 0"):
        check_workers("auto", ActorSize(cpus=1, gpus=1), 0)
    with pytest.raises(UserError, match=r"--workers 9 of 1 CPU each: .* 8; ask for fewer, add nodes$"):
        check_workers(9, ActorSize(cpus=1, gpus=0), 8)
