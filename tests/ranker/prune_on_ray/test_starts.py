"""What a worker of a prune run may do when it comes up, given how those before it fared: no Ray."""

from __future__ import annotations

from patchsieve.pipeline.cluster.places import DEATHS, Place
from patchsieve.ranker.prune_on_ray.starts import MOST_DEATHS, PATIENCE_S, Leave, Starts

START, HOLD = Leave("start"), Leave("hold")
BAD, GOOD, CPUS = (Place("host", "0123456789", gpus) for gpus in (("0",), ("1",), ()))
DEAD = "AcceleratorError: CUDA error: unspecified launch failure"


def break_down(starts: Starts, times: int) -> None:
    """A worker comes up on the bad GPU and fails on another shard each time."""
    for index in range(times):
        assert starts.begin("bad", BAD) == START
        starts.end("bad")
        starts.failed("bad", BAD, DEAD, index)


def test_a_worker_holds_a_gpu_that_is_taken_out_while_another_one_works() -> None:
    starts = Starts()
    assert starts.begin("good", GOOD) == START
    starts.end("good")
    break_down(starts, DEATHS)
    assert starts.begin("bad", BAD) == HOLD
    assert starts.hold() == HOLD
    assert starts.told() == ({BAD: DEAD}, dict.fromkeys(range(DEATHS), DEAD))


def test_where_no_other_one_is_left_it_says_so() -> None:
    starts = Starts()
    break_down(starts, DEATHS)
    leave = starts.begin("bad", BAD)
    assert leave.to == "complain"
    assert leave.why == f"no device is left to work on: {BAD}: {DEAD}"


def test_one_that_holds_learns_that_the_last_other_one_is_lost() -> None:
    starts = Starts()
    starts.begin("good", GOOD)
    break_down(starts, DEATHS)
    assert starts.begin("bad", BAD) == HOLD
    starts.failed("good", GOOD, "no driver")
    assert starts.hold().to == "complain"


def test_workers_of_the_wave_before_are_not_waited_for() -> None:
    starts = Starts()
    starts.begin("good", GOOD)
    starts.end("good")
    break_down(starts, DEATHS)
    starts.begin_wave(workers=1, places=1)
    assert starts.begin("next", BAD).to == "complain"


def test_one_that_comes_up_first_on_a_gpu_taken_out_waits_for_the_others_and_then_passes_its_shards_on() -> (
    None
):
    clock = [0.0]
    starts = Starts(lambda: clock[0])
    break_down(starts, DEATHS)
    starts.begin_wave(workers=2, places=2)
    assert starts.begin("bad", BAD) == HOLD
    assert starts.begin("good", GOOD) == START
    starts.begin_wave(workers=2, places=2)
    assert starts.begin("bad", BAD) == HOLD
    clock[0] += PATIENCE_S
    assert starts.hold() == Leave(
        "pass", f"every worker came up on a device that is taken out: {BAD}: {DEAD}"
    )
    # Where there are no other places it is not only this wave that cannot work.
    starts.begin_wave(workers=1, places=1)
    assert starts.begin("bad", BAD).to == "complain"


def test_a_worker_that_finishes_a_shard_ends_the_row() -> None:
    starts = Starts()
    for _ in range(2):
        break_down(starts, DEATHS - 1)
        starts.begin("bad", BAD)
        starts.end("bad")
        starts.worked("bad")
    assert starts.told()[0] == {}


def test_processes_that_die_while_they_start_take_their_gpu_out_and_on_cpus_end_the_run() -> None:
    starts = Starts()
    assert starts.begin("good", GOOD) == START
    for _ in range(DEATHS):
        assert starts.begin("bad", BAD) == START
    assert starts.begin("bad", BAD) == HOLD
    for _ in range(MOST_DEATHS):
        assert starts.begin("cpu", CPUS) == START
    assert starts.begin("cpu", CPUS).to == "complain"
