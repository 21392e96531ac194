"""Devices that fail, in the queue's policy alone: which shards are blamed, and when a place is taken out."""

from __future__ import annotations

import heapq
import itertools

import pytest

from patchsieve.pipeline.cluster.places import DEATHS, Place, Places
from patchsieve.pipeline.score_on_ray.policy import NOWHERE, Gone, QueuePolicy

DEAD = "CUDA error: an illegal memory access was encountered"


def place(gpu: int, node: int = 0) -> Place:
    return Place(f"host-{node}", f"{node:056x}", (str(gpu),))


def take(policy: QueuePolicy, actor: str, now: float = 0.0) -> int:
    shard = policy.assign(actor, now)
    assert shard is not None
    return shard


def break_down(policy: QueuePolicy, actor: str, gpu: int, *, shards: int = 1, now: float = 0.0) -> list[int]:
    """An actor comes up, takes so many shards and ends by its device; what it had in hand."""
    policy.add_actor(actor, place(gpu))
    held = [take(policy, actor, now) for _ in range(shards)]
    policy.actor_gone(actor, Gone.BROKE, now, DEAD)
    return held


def simulate(
    places: list[Place], shards: int, *, dead: dict[Place, float], poison: frozenset[int] = frozenset()
) -> QueuePolicy:
    """A run with an actor at each place and shards of a minute, until it is over or no place is left.

    `dead`: places on which every shard fails at once from some second on, replacements too; `poison`: shards that break
    any GPU's process. A replacement takes ten seconds.
    """
    policy = QueuePolicy([50_000_000] * shards)
    names = itertools.count(1)
    order = itertools.count()
    # (time, number, actor or none, its place, the shard that it comes to the end of or none)
    events: list[tuple[float, int, str, Place, int]] = [(0.0, next(order), "", where, -1) for where in places]
    alive: dict[str, Place] = {}
    busy: dict[str, float] = {}
    while events and not policy.ended:
        now, _, actor, home, shard = heapq.heappop(events)
        if not actor and home != NOWHERE and home not in policy.places.out:
            alive[actor := f"actor-{next(names)}"] = home
            policy.add_actor(actor, home)
        elif actor in alive and shard in policy.holding(actor):
            if shard in poison or now >= dead.get(home, float("inf")):
                policy.actor_gone(actor, Gone.BROKE, now, DEAD)
                del alive[actor]
                heapq.heappush(events, (now + 10, next(order), "", home, -1))
            else:
                policy.finish(actor, shard)
        for name, where in alive.items():
            while (given := policy.assign(name, now, bytes_per_s=50e6 / 60)) is not None:
                broken = given in poison or now >= dead.get(where, float("inf"))
                begin = max(now, busy.get(name, now))
                busy[name] = begin + (0.3 if broken else 60)
                heapq.heappush(events, (busy[name], next(order), name, where, given))
        if (later := policy.next_time()) is not None and later > now:
            heapq.heappush(events, (later, next(order), "", NOWHERE, -1))
    return policy


ONE_NODE = [place(gpu) for gpu in range(8)]
TWO_NODES = [place(gpu, node) for node in range(2) for gpu in range(4)]
EIGHT_NODES = [place(0, node) for node in range(8)]
SCENES = {"one node": ONE_NODE, "two nodes": TWO_NODES, "eight nodes": EIGHT_NODES}


@pytest.mark.parametrize("places", SCENES.values(), ids=SCENES)
@pytest.mark.parametrize(
    "dead",
    [
        {3: 600.0},
        {0: 0.0},
        {1: 7300.0},
        {2: 100.0, 5: 100.0},
        {gpu: 60.0 * gpu for gpu in range(7)},
        dict.fromkeys(range(4), 600.0),
    ],
)
def test_dead_gpus_among_eight_cost_no_shard(dead: dict[int, float], places: list[Place]) -> None:
    policy = simulate(places, 1000, dead={places[gpu]: at for gpu, at in dead.items()})
    assert (policy.finished, policy.failures) == (1000, {})
    assert policy.places.out == {places[gpu]: DEAD for gpu in dead}


@pytest.mark.parametrize("places", SCENES.values(), ids=SCENES)
def test_when_no_gpu_is_left_the_work_stays_undone_and_is_not_given_up(places: list[Place]) -> None:
    policy = simulate(places, 100, dead=dict.fromkeys(places, 200.0))
    assert policy.places.out.keys() == set(places)
    assert policy.failures == {}
    assert len(list(policy.unfinished())) == 100 - policy.finished > 50


@pytest.mark.parametrize("places", [ONE_NODE[:1], ONE_NODE[:2], *SCENES.values()])
@pytest.mark.parametrize("poison", [0, 17, 39])
def test_a_shard_that_breaks_every_process_is_given_up_and_no_gpu_with_it(
    places: list[Place], poison: int
) -> None:
    policy = simulate(places, 40, dead={}, poison=frozenset([poison]))
    assert policy.failures.keys() == {poison}
    assert policy.finished == 39
    assert policy.failures[poison].attempts == 3
    assert policy.places.out == {}


@pytest.mark.parametrize("places", SCENES.values(), ids=SCENES)
def test_of_shards_that_break_every_process_each_is_given_up_and_gpus_are_left(places: list[Place]) -> None:
    poison = frozenset({3, 4, 5, 20, 38, 39})
    policy = simulate(places, 40, dead={}, poison=poison)
    assert policy.failures.keys() == poison
    assert policy.finished == 34
    assert len(policy.places.out) <= 2


def test_the_fault_of_a_device_blames_a_shard_no_more_than_any_death() -> None:
    policy = QueuePolicy([1], max_attempts=2, retry_wait_s=0.0)
    for number in range(2):
        assert break_down(policy, f"actor-{number}", gpu=0) == [0]
    assert policy.failures[0].attempts == 2
    assert policy.failures[0].reason == DEAD


def test_a_shard_that_was_finished_elsewhere_keeps_no_other_from_having_its_attempt_back() -> None:
    policy = QueuePolicy([10 - shard for shard in range(DEATHS)], retry_wait_s=0.0)
    policy.add_actor("elsewhere", place(1))
    assert break_down(policy, "a0", gpu=0) == [0]
    policy.finish("elsewhere", take(policy, "elsewhere"))
    for shard in range(1, DEATHS):
        assert policy.attempts(shard) == 0
        assert break_down(policy, f"a{shard}", gpu=0) == [shard]
    assert policy.places.out == {place(0): DEAD}
    assert [policy.attempts(shard) for shard in range(DEATHS)] == [0] * DEATHS


def test_what_a_place_cost_its_shards_is_taken_back_when_it_is_taken_out() -> None:
    policy = QueuePolicy([3, 2, 1], retry_wait_s=0.0)
    first = break_down(policy, "a", gpu=0, shards=2)
    alone = [break_down(policy, f"b{number}", gpu=0)[0] for number in range(DEATHS - 1)]
    assert sorted(alone) == sorted(first), "each of the suspects alone, the one that waited longest first"
    assert policy.places.out == {place(0): DEAD}
    assert [policy.attempts(shard) for shard in first] == [0, 0]
    policy.add_actor("c", place(1))
    assert [take(policy, "c"), take(policy, "c")] == [0, 1], (
        "no suspects any more: two at a time, large ones first"
    )


@pytest.mark.parametrize("other", [place(1), place(0, 1)])
def test_suspects_wait_for_a_place_that_is_not_in_doubt_while_there_is_one(other: Place) -> None:
    policy = QueuePolicy([9, 8, 7, 6, 1], retry_wait_s=0.0)
    policy.add_actor("good", other)
    assert [take(policy, "good"), take(policy, "good")] == [0, 1]
    assert break_down(policy, "bad", gpu=0, shards=2) == [2, 3]
    policy.add_actor("again", place(0))
    assert take(policy, "again") == 4
    policy.finish("good", 0)
    policy.finish("good", 1)
    assert take(policy, "good") == 2
    # Once an actor has finished a shard where another one broke, it tries suspects too.
    policy.finish("again", 4)
    assert take(policy, "again") == 3


def test_where_every_place_is_in_doubt_suspects_are_tried_all_the_same() -> None:
    policy = QueuePolicy([1, 1], retry_wait_s=0.0)
    policy.add_actor("drained", place(1))
    policy.drain("drained")
    (suspect,) = break_down(policy, "bad", gpu=0)
    policy.add_actor("again", place(0))
    assert take(policy, "again") == suspect


def test_actors_that_never_come_up_take_their_place_out() -> None:
    policy = QueuePolicy([1])
    for _ in range(DEATHS):
        assert policy.places.out == {}
        policy.start_failed(place(0), "no driver")
    assert policy.places.out == {place(0): "no driver"}


def test_a_replacement_that_finishes_a_shard_ends_the_row() -> None:
    places = Places()
    for shard in range(2 * DEATHS):
        assert places.failed(place(0), DEAD, [shard]) == ()
        places.worked(place(0), places.faults(place(0)))
    assert places.out == {}


def test_an_actor_that_shares_the_gpu_and_goes_on_does_not_end_the_row() -> None:
    places = Places()
    before = places.faults(place(0))
    rows = []
    for shard in range(DEATHS):
        rows.append(places.failed(place(0), DEAD, [shard]))
        places.worked(place(0), before)
    assert rows == [(), (), tuple(frozenset({shard}) for shard in range(DEATHS))]


def test_places_are_told_apart_by_node_and_gpu() -> None:
    places = Places()
    for node, gpu in itertools.product(range(2), range(2)):
        places.failed(place(gpu, node), DEAD)
    assert places.out == {}
    assert str(Place("a", "0123456789", ())) == "node a (01234567)"
    assert str(Place("a", "0123456789", ("0", "1"))) == "GPU 0, 1 of node a (01234567)"
    assert str(Place("a", "0123456789", ("MIG-41b3",))) == "GPU MIG-41b3 of node a (01234567)"
