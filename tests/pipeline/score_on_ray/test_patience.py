"""How long a run without an actor waits, by a clock that only tests move."""

from __future__ import annotations

import pytest

from patchsieve.pipeline.cluster.nodes import ClusterView
from patchsieve.pipeline.cluster.room import Room
from patchsieve.pipeline.cluster.slots import ActorSize, NodeResources
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.score_on_ray.patience import ASK_S, JOIN_S, Patience

TIMEOUT_S = 100.0


class View(ClusterView):
    """A cluster that is as it is told."""

    def __init__(self, room: Room, *nodes: NodeResources) -> None:
        super().__init__()
        self.room = room
        self.nodes = {node.node_id: node for node in nodes}

    def room_for(self, size: ActorSize) -> Room:
        return self.room


NODE = NodeResources(cpus=4, gpus=0, node_id="a")


def patience(view: View, others: str = "") -> Patience:
    return Patience(ActorSize(cpus=8, gpus=1), TIMEOUT_S, view, now=0.0, others=lambda: others)


def wait(waiting: Patience, until: float, *, since: float = 0.0, placed: bool = False) -> None:
    for step in range(1, int((until - since) / ASK_S) + 1):
        waiting.look(since + step * ASK_S, placed=placed)


@pytest.mark.parametrize("room", [Room.FREE, Room.COMING, Room.TAKEN])
def test_what_does_not_come_in_time_is_late(room: Room) -> None:
    waiting = patience(View(room, NODE))
    wait(waiting, TIMEOUT_S)
    assert not waiting.late(TIMEOUT_S)
    assert waiting.late(TIMEOUT_S + 1)
    assert waiting.waits_for == ""


def test_a_full_cluster_is_waited_for_however_long_and_said() -> None:
    view = View(Room.TAKEN, NODE)
    waiting = patience(view, "job 02 (train): 8 actors")
    wait(waiting, 50 * TIMEOUT_S)
    assert not waiting.late(50 * TIMEOUT_S)
    assert waiting.waits_for == "job 02 (train): 8 actors"
    # From when there is room its actors have their time.
    view.room = Room.FREE
    wait(waiting, 50.5 * TIMEOUT_S, since=50 * TIMEOUT_S)
    assert waiting.waits_for == ""
    assert not waiting.late(50.5 * TIMEOUT_S)
    assert waiting.late(51.5 * TIMEOUT_S)


def test_who_has_a_place_waits_for_nobody() -> None:
    waiting = patience(View(Room.TAKEN, NODE), "job 02 (train): 8 actors")
    wait(waiting, TIMEOUT_S, placed=True)
    assert waiting.waits_for == ""
    assert waiting.late(TIMEOUT_S + 1)


def test_what_can_never_come_ends_the_run_once_nodes_had_time_to_join() -> None:
    waiting = patience(View(Room.NEVER, NODE))
    wait(waiting, JOIN_S)
    with pytest.raises(
        UserError, match="no actor can come: each asks for 8 CPUs and 1 GPUs, the nodes have 4 CPUs"
    ):
        waiting.look(JOIN_S + ASK_S, placed=False)


def test_without_any_node_the_first_ones_are_waited_for() -> None:
    view = View(Room.NEVER)
    waiting = patience(view)
    wait(waiting, TIMEOUT_S)
    assert waiting.late(TIMEOUT_S + 1)
    view.nodes = {"a": NODE}
    wait(waiting, TIMEOUT_S + JOIN_S, since=TIMEOUT_S)


def test_a_ready_actor_begins_it_anew() -> None:
    waiting = patience(View(Room.COMING, NODE))
    waiting.worked(TIMEOUT_S)
    assert not waiting.late(2 * TIMEOUT_S)
