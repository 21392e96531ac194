"""The queue policy, alone: blame, attempts, order, and a simulation in which nothing is lost."""

from __future__ import annotations

import heapq
import random

import pytest

from patchsieve.pipeline.score_on_ray.policy import (
    AHEAD_S,
    GIVE_BACK_S,
    MOST_SLOTS,
    Failure,
    Gone,
    QueuePolicy,
    may_finish,
)


def take(policy: QueuePolicy, actor: str, now: float = 0.0) -> int:
    shard = policy.assign(actor, now)
    assert shard is not None
    return shard


def test_large_shards_go_first_and_each_actor_holds_two() -> None:
    policy = QueuePolicy([5, 9, 7, 1])
    policy.add_actor("a")
    assert [take(policy, "a"), take(policy, "a")] == [1, 2]
    assert policy.assign("a", 0.0) is None
    policy.finish("a", 1)
    assert take(policy, "a") == 0


@pytest.mark.parametrize(
    ("shards_per_s", "held"), [(0.0, 2), (0.9, 2), (1.5, 3), (2.6, 6), (1000.0, MOST_SLOTS)]
)
def test_of_small_shards_an_actor_holds_some_seconds_of_work(shards_per_s: float, held: int) -> None:
    policy = QueuePolicy([100] * 50)
    policy.add_actor("a")
    while policy.assign("a", 0.0, bytes_per_s=100 * shards_per_s) is not None:
        pass
    assert len(policy.holding("a")) == held
    assert held in (2, MOST_SLOTS) or held - 1 < shards_per_s * AHEAD_S <= held


def test_shards_of_unknown_size_are_not_taken_for_small_ones() -> None:
    policy = QueuePolicy([0] * 50)
    policy.add_actor("a")
    while policy.assign("a", 0.0, bytes_per_s=1e9) is not None:
        pass
    assert len(policy.holding("a")) == 2


def test_no_second_shard_while_a_free_actor_could_take_it() -> None:
    policy = QueuePolicy([1, 1, 1])
    for actor in "ab":
        policy.add_actor(actor)
    take(policy, "a")
    take(policy, "b")
    take(policy, "a")
    policy.finish("b", policy.holding("b")[0])
    assert policy.waiting == 0
    last = QueuePolicy([1, 1, 1])
    for actor in "ab":
        last.add_actor(actor)
    take(last, "a")
    last.finish("b", take(last, "b"))
    assert last.assign("a", 0.0) is None, "b is free again"
    take(last, "b")


@pytest.mark.parametrize("gone", [True, False])
def test_an_actor_that_gets_no_more_shards_is_waited_for_by_none(gone: bool) -> None:
    policy = QueuePolicy([1, 1])
    for actor in "ab":
        policy.add_actor(actor)
    if gone:
        policy.actor_gone("b", Gone.RETIRED, now=0.0)
    else:
        policy.drain("b")
    assert [take(policy, "a"), take(policy, "a")] == [0, 1]


def test_errors_count_as_attempts_and_wait_longer_each_time() -> None:
    policy = QueuePolicy([1], max_attempts=3, retry_wait_s=2.0)
    policy.add_actor("a")
    policy.fail("a", take(policy, "a"), "reset", now=0.0)
    assert policy.next_time() == 2.0
    assert policy.assign("a", 1.9) is None
    policy.fail("a", take(policy, "a", 2.0), "reset", now=2.0)
    assert policy.next_time() == 6.0
    policy.fail("a", take(policy, "a", 6.0), "reset again", now=6.0)
    assert policy.ended
    assert policy.failures[0].attempts == 3
    assert policy.failures[0].reason == "reset again"


def test_three_attempts_and_ten_lost_nodes_are_the_default() -> None:
    policy = QueuePolicy([2, 1])
    policy.add_actor("a")
    for attempt, now in ((1, 0.0), (2, 1.0), (3, 3.0)):  # a second later, then two
        assert not policy.failures
        policy.fail("a", take(policy, "a", now), "reset", now)
        assert policy.attempts(0) == (attempt if attempt < 3 else 0)
    assert policy.failures == {0: Failure(3, "reset")}
    for _ in range(10):
        assert not policy.ended
        take(policy, "a", 9.0)
        policy.actor_gone("a", Gone.LOST, now=9.0)
        policy.add_actor("a")
    assert policy.failures[1] == Failure(0, "its node was lost 10 times")


def test_content_failure_is_final_at_once() -> None:
    policy = QueuePolicy([1], retry_wait_s=0.0)
    policy.add_actor("a")
    policy.fail("a", take(policy, "a"), "reset", now=0.0)
    policy.give_up("a", take(policy, "a"), "no sample gave a row")
    assert policy.ended
    assert policy.failures == {0: Failure(2, "no sample gave a row")}


def test_what_was_held_against_a_shard_is_forgotten_when_it_is_finished() -> None:
    policy = QueuePolicy([1], retry_wait_s=0.0)
    policy.add_actor("a")
    policy.fail("a", take(policy, "a"), "reset", now=0.0)
    policy.finish("a", take(policy, "a"))
    assert policy.attempts(0) == 0


def test_death_with_one_shard_in_hand_is_that_shards_doing() -> None:
    policy = QueuePolicy([1], max_attempts=2, retry_wait_s=0.0)
    for actor in "ab":
        policy.add_actor(actor)
        take(policy, actor)
        policy.actor_gone(actor, Gone.DIED, now=0.0)
    assert policy.ended
    assert policy.failures == {0: Failure(2, "its actor died")}


def test_of_two_shards_in_hand_only_the_guilty_one_fails() -> None:
    policy = QueuePolicy([1, 1, 1], max_attempts=3, retry_wait_s=0.0)
    poison = 1
    finished: list[int] = []
    for number in range(20):
        actor = f"actor-{number}"
        policy.add_actor(actor)
        while not policy.ended and policy.assign(actor, 0.0) is not None:
            pass
        held = policy.holding(actor)
        if poison in held:
            policy.actor_gone(actor, Gone.DIED, now=0.0)
            continue
        for shard in held:
            policy.finish(actor, shard)
            finished.append(shard)
    assert sorted(finished) == [0, 2]
    assert list(policy.failures) == [poison]
    assert policy.failures[poison].attempts == 3


def test_a_suspect_is_alone_on_its_actor() -> None:
    policy = QueuePolicy([1, 1, 1, 1], retry_wait_s=0.0)
    policy.add_actor("a")
    first, second = take(policy, "a"), take(policy, "a")
    policy.actor_gone("a", Gone.DIED, now=0.0)
    assert policy.attempts(first) == policy.attempts(second) == 0
    assert (policy.waiting, policy.held) == (4, 0), "suspects wait like others"
    policy.add_actor("b")
    assert take(policy, "b") in (first, second)
    assert policy.assign("b", 0.0) is None


def test_lost_nodes_blame_nobody_until_their_own_cap() -> None:
    policy = QueuePolicy([1], max_losses=3)
    for number in range(3):
        assert not policy.failures
        actor = f"spot-{number}"
        policy.add_actor(actor)
        take(policy, actor)
        policy.actor_gone(actor, Gone.LOST, now=0.0)
    assert policy.ended
    assert policy.failures[0].attempts == 0


def test_retired_actor_gives_its_shards_back_for_free() -> None:
    policy = QueuePolicy([1, 1])
    policy.add_actor("a")
    take(policy, "a")
    take(policy, "a")
    for _ in range(50):
        policy.actor_gone("a", Gone.RETIRED, now=0.0)
        policy.add_actor("a")
        take(policy, "a")
        take(policy, "a")
    assert not policy.failures
    assert sorted(policy.unfinished()) == [0, 1]


def test_a_drained_actor_keeps_its_first_shard_alone_and_gets_no_more() -> None:
    policy = QueuePolicy([3, 2, 1, 1])
    for actor in "ab":
        policy.add_actor(actor)
    assert [take(policy, "a"), take(policy, "a")] == [0, 1]
    assert policy.drain("a") == (1,)
    assert policy.holding("a") == (0,)
    assert policy.assign("a", 0.0) is None
    # What it had not begun is the next one that another gets, and the drained one is not waited for.
    assert take(policy, "b") == 1
    policy.finish("a", 0)
    assert policy.assign("a", 0.0) is None
    assert take(policy, "b") == 2
    policy.finish("b", 1)
    assert take(policy, "b") == 3, "the drained actor counts as free for nobody"


def test_a_drained_actor_that_is_let_go_costs_its_shard_nothing() -> None:
    policy = QueuePolicy([1], max_attempts=1, max_losses=1)
    for _ in range(5):
        policy.add_actor("a")
        take(policy, "a")
        assert policy.drain("a") == ()
        policy.actor_gone("a", Gone.RETIRED, now=0.0)
    policy.add_actor("a")
    assert take(policy, "a") == 0, "an actor of the same name is another actor"
    assert policy.attempts(0) == 0


@pytest.mark.parametrize(
    ("seconds_left", "left_bytes", "bytes_per_s", "expected"),
    [
        (None, 10**12, 1.0, True),  # no end is known
        (GIVE_BACK_S + 10, 100, 10.0, True),
        (GIVE_BACK_S + 10, 101, 10.0, False),
        (GIVE_BACK_S + 10, 11, 1.0, False),
        (GIVE_BACK_S + 0.5, 5, 10.0, True),
        (GIVE_BACK_S + 10, 10**12, 0.0, True),  # nothing measured yet
        (GIVE_BACK_S, 0, 10.0, False),
        (-5.0, 0, 10.0, False),
    ],
)
def test_a_shard_is_finished_on_a_drained_node_if_there_is_time(
    seconds_left: float | None, left_bytes: int, bytes_per_s: float, expected: bool
) -> None:
    given = {"seconds_left": seconds_left, "left_bytes": left_bytes, "bytes_per_s": bytes_per_s}
    assert may_finish(**given) is expected


def test_simulation_with_deaths_losses_and_errors_ends_every_shard_once() -> None:
    chance = random.Random(5)
    sizes = [chance.randint(1, 100) for _ in range(3000)]
    poison = set(chance.sample(range(len(sizes)), 7))
    policy = QueuePolicy(sizes, retry_wait_s=0.1)
    ended: list[int] = []
    events: list[tuple[float, int, str, int]] = []
    actors = 0
    now = 0.0

    def join() -> None:
        nonlocal actors
        actors += 1
        policy.add_actor(f"actor-{actors}")

    for _ in range(40):
        join()
    alive = {f"actor-{number}" for number in range(1, 41)}
    while not policy.ended:
        for actor in sorted(alive):
            while (shard := policy.assign(actor, now)) is not None:
                heapq.heappush(events, (now + sizes[shard] * chance.uniform(0.5, 2), shard, actor, shard))
        if not events:
            assert policy.next_time() is not None
            now = policy.next_time() or now
            continue
        now, _, actor, shard = heapq.heappop(events)
        if actor not in alive or shard not in policy.holding(actor):
            continue
        roll = chance.random()
        if shard in poison or roll < 0.01:
            why = Gone.DIED if shard in poison or roll < 0.005 else Gone.LOST
            policy.actor_gone(actor, why, now)
            alive.remove(actor)
            join()
            alive.add(f"actor-{actors}")
        elif roll < 0.03:
            policy.fail(actor, shard, "connection reset", now)
        else:
            policy.finish(actor, shard)
            ended.append(shard)
    assert len(ended) == len(set(ended))
    assert set(policy.failures) >= poison
    assert len(policy.failures) <= len(poison) + 2
    assert sorted([*ended, *policy.failures]) == list(range(len(sizes)))
    assert policy.finished == len(ended)
