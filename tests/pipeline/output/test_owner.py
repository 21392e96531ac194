"""One owner for an output folder: who is alive and who is not. Clocks and processes are made up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from patchsieve.pipeline import storage
from patchsieve.pipeline.errors import InfrastructureError, UserError
from patchsieve.pipeline.output.machine import process_start
from patchsieve.pipeline.output.owner import HEARTBEAT_S, STALE_S, Owner
from tests.pipeline.output.world import World


@pytest.fixture
def world() -> World:
    return World()


def owner_file(folder: Path) -> dict:
    return json.loads((folder / "owner.json").read_bytes())


def test_the_file_names_run_host_and_process(tmp_path: Path, world: World) -> None:
    owner = Owner(str(tmp_path), "run-1", machine=world.machine("a", 5))
    owner.acquire(heartbeat=False)
    content = owner_file(tmp_path)
    assert (content["run_id"], content["host"], content["pid"]) == ("run-1", "a", 5)
    assert content["started"] == content["heartbeat"] == 1000.0
    world.clock += 10
    assert owner.beat()
    assert owner_file(tmp_path)["heartbeat"] == 1010.0
    owner.release()
    owner.release()
    assert list(tmp_path.iterdir()) == []


def test_a_live_owner_stops_a_second_run_with_one_clear_line(tmp_path: Path, world: World) -> None:
    first = Owner(str(tmp_path), "run-1", machine=world.machine("a", 5))
    first.acquire(heartbeat=False)
    world.clock += 4
    second = Owner(str(tmp_path), "run-2", machine=world.machine("b", 6))
    waited_from = world.clock

    def beat_in_time() -> None:
        if world.clock >= 1000 + HEARTBEAT_S and owner_file(tmp_path)["beats"] == 0:
            first.beat()

    world.while_waiting = beat_in_time
    with pytest.raises(UserError) as refused:
        second.acquire(heartbeat=False)
    assert world.clock - waited_from < HEARTBEAT_S  # a beat is proof enough
    text = str(refused.value)
    for part in (str(tmp_path), "run-1", "on a", "process 5", "last heartbeat 0 s ago"):
        assert part in text
    assert "\n" not in text
    assert owner_file(tmp_path)["run_id"] == "run-1"


@pytest.mark.parametrize("told", [None, 10**400, float("nan"), float("-inf")])
def test_an_owner_that_tells_no_time_is_refused_without_one(
    tmp_path: Path, world: World, told: float | None
) -> None:
    Owner(str(tmp_path), "run-1", machine=world.machine("a", 5)).acquire(heartbeat=False)

    def change() -> None:
        content = {**owner_file(tmp_path), "heartbeat": told}
        (tmp_path / "owner.json").write_text(json.dumps(content))

    world.while_waiting = change
    with pytest.raises(UserError, match=r"in use by run run-1 on a \(process 5\): wait until it ends"):
        Owner(str(tmp_path), "run-2", machine=world.machine("b", 6)).acquire(heartbeat=False)


def test_a_dead_process_of_this_host_is_stale_at_once(tmp_path: Path, world: World) -> None:
    Owner(str(tmp_path), "run-1", machine=world.machine("a", 5)).acquire(heartbeat=False)
    del world.processes["a", 5]
    Owner(str(tmp_path), "run-2", machine=world.machine("a", 6)).acquire(heartbeat=False)
    assert world.clock == 1000
    assert owner_file(tmp_path)["run_id"] == "run-2"


def test_a_process_number_used_again_is_another_process(tmp_path: Path, world: World) -> None:
    Owner(str(tmp_path), "run-1", machine=world.machine("a", 5, start="77")).acquire(heartbeat=False)
    Owner(str(tmp_path), "run-2", machine=world.machine("a", 5, start="99")).acquire(heartbeat=False)
    assert world.clock == 1000


def test_another_container_of_the_same_host_name_is_not_this_host(tmp_path: Path, world: World) -> None:
    Owner(str(tmp_path), "run-1", machine=world.machine("a", 5)).acquire(heartbeat=False)
    content = owner_file(tmp_path)
    content["space"] = "boot, other process numbers"
    (tmp_path / "owner.json").write_text(json.dumps(content))
    del world.processes["a", 5]
    Owner(str(tmp_path), "run-2", machine=world.machine("a", 6)).acquire(heartbeat=False)
    assert world.clock >= 1000 + STALE_S


@pytest.mark.parametrize(
    ("changes", "gone"),
    [
        ({"space": None}, True),  # of a release that did not tell it
        ({"pid": 1}, True),  # the program of a container
        ({"pid": 0}, False),
        ({"pid": -7}, False),
        ({"pid": "5"}, False),
    ],
)
def test_a_process_is_looked_up_where_there_can_be_such_a_one(
    tmp_path: Path, world: World, changes: dict, gone: bool
) -> None:
    Owner(str(tmp_path), "run-1", machine=world.machine("a", 5)).acquire(heartbeat=False)
    del world.processes["a", 5]
    content = {**owner_file(tmp_path), **changes}
    (tmp_path / "owner.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    Owner(str(tmp_path), "run-2", machine=world.machine("a", 6)).acquire(heartbeat=False)
    assert (world.clock == 1000) == gone


@pytest.mark.parametrize("clock_error", [-86400.0, 0.0, 86400.0])
def test_a_silent_owner_elsewhere_is_watched_for_a_minute_of_our_clock(
    tmp_path: Path, world: World, clock_error: float, caplog: pytest.LogCaptureFixture
) -> None:
    silent = Owner(str(tmp_path), "run-1", machine=world.machine("a", 5, clock_error=clock_error))
    silent.acquire(heartbeat=False)
    Owner(str(tmp_path), "run-2", machine=world.machine("b", 6)).acquire(heartbeat=False)
    assert 60 <= world.clock - 1000 <= 62  # as is said to users
    assert STALE_S >= 6 * HEARTBEAT_S  # so that five may be late or lost
    waits = f"{tmp_path}/owner.json belongs to run run-1 on a (process 5); watching for 60 s whether it lives"
    assert caplog.messages.count(waits) == 1
    assert owner_file(tmp_path)["run_id"] == "run-2"


def test_an_owner_that_ends_while_watched_makes_room(tmp_path: Path, world: World) -> None:
    first = Owner(str(tmp_path), "run-1", machine=world.machine("a", 5))
    first.acquire(heartbeat=False)
    world.while_waiting = first.release
    Owner(str(tmp_path), "run-2", machine=world.machine("b", 6)).acquire(heartbeat=False)
    assert world.clock - 1000 < 5
    assert owner_file(tmp_path)["run_id"] == "run-2"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"run_id": 5}', b"\xff"])
def test_a_file_that_names_nobody_is_watched_too(tmp_path: Path, world: World, content: bytes) -> None:
    (tmp_path / "owner.json").write_bytes(content)
    Owner(str(tmp_path), "run-2", machine=world.machine("b", 6)).acquire(heartbeat=False)
    assert world.clock >= 1000 + STALE_S
    assert owner_file(tmp_path)["run_id"] == "run-2"


def test_an_owner_learns_that_it_lost_the_folder(tmp_path: Path, world: World) -> None:
    suspended = Owner(str(tmp_path), "run-1", machine=world.machine("a", 5))
    suspended.acquire(heartbeat=False)
    Owner(str(tmp_path), "run-2", machine=world.machine("b", 6)).acquire(heartbeat=False)
    before = owner_file(tmp_path)
    assert not suspended.beat()
    assert suspended.lost.is_set()
    assert suspended.lost_to == "run run-2 on b (process 6)"
    suspended.release()
    assert owner_file(tmp_path) == before


def test_an_owner_file_removed_by_hand_comes_back(tmp_path: Path, world: World) -> None:
    owner = Owner(str(tmp_path), "run-1", machine=world.machine("a", 5))
    owner.acquire(heartbeat=False)
    (tmp_path / "owner.json").unlink()
    assert owner.beat()
    assert owner_file(tmp_path)["run_id"] == "run-1"


def test_an_owner_whose_removed_file_another_run_made_is_told_too(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, other = (
        Owner(str(tmp_path), f"run-{number}", machine=world.machine("a", number)) for number in (1, 2)
    )
    owner.acquire(heartbeat=False)
    (tmp_path / "owner.json").unlink()
    create = storage.create_exclusive

    def a_moment_too_late(url: str, data: bytes) -> bool:
        monkeypatch.setattr(storage, "create_exclusive", create)
        other.acquire(heartbeat=False)
        return create(url, data)

    monkeypatch.setattr(storage, "create_exclusive", a_moment_too_late)
    assert not owner.beat()
    assert owner.lost_to == "run run-2 on a (process 2)"
    assert other.beat()


@pytest.mark.parametrize("dead_before", [False, True])
def test_an_answer_that_was_lost_is_recognised_as_ours(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch, dead_before: bool
) -> None:
    if dead_before:
        Owner(str(tmp_path), "dead", machine=world.machine("a", 4)).acquire(heartbeat=False)
        del world.processes["a", 4]
    create = storage.create_exclusive

    def answer_lost(url: str, data: bytes) -> bool:
        create(url, data)
        return create(url, data)

    monkeypatch.setattr(storage, "create_exclusive", answer_lost)
    owner = Owner(str(tmp_path), "run-1", machine=world.machine("a", 5))
    owner.acquire(heartbeat=False)
    assert world.clock == 1000
    assert owner.beat()
    assert [path.name for path in tmp_path.iterdir()] == ["owner.json"]


def test_the_heartbeat_thread_outlives_a_store_that_is_away(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("patchsieve.pipeline.output.owner.HEARTBEAT_S", 0.001)
    commit, troubles, beaten = storage.commit_bytes, iter([True, True]), threading.Event()

    def commit_after_trouble(data: bytes, url: str, *, run_id: str) -> None:
        if next(troubles, False):
            raise InfrastructureError("the store is away")
        commit(data, url, run_id=run_id)
        beaten.set()

    monkeypatch.setattr(storage, "commit_bytes", commit_after_trouble)
    owner = Owner(str(tmp_path), "run-1", machine=world.machine("a", 5))
    owner.acquire()
    assert beaten.wait(30)
    owner.release()
    assert list(tmp_path.iterdir()) == []


def test_a_run_ends_even_if_the_store_is_away(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    owner = Owner(str(tmp_path), "run-1", machine=world.machine("a", 5))
    owner.acquire(heartbeat=False)

    def away(url: str) -> None:
        raise InfrastructureError("the store is away")

    monkeypatch.setattr(storage, "remove", away)
    owner.release()
    assert "the store is away" in caplog.text


def test_processes_are_told_apart() -> None:
    mine = process_start(os.getpid())
    assert mine
    assert mine == process_start(os.getpid())
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert process_start(child.pid)
        assert process_start(child.pid) != mine
        child.kill()
        # Until it is waited for it is a zombie, which has ended all the same.
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert process_start(child.pid) is None
    finally:
        child.communicate()
    assert process_start(child.pid) is None


def test_ownership_on_an_object_store(s3, world: World) -> None:
    folder = s3.url("out")
    first = Owner(folder, "run-1", machine=world.machine("a", 5))
    first.acquire(heartbeat=False)
    world.while_waiting = first.beat
    second = Owner(folder, "run-2", machine=world.machine("b", 6))
    with pytest.raises(UserError, match="run-1 on a"):
        second.acquire(heartbeat=False)
    world.while_waiting = lambda: None
    second.acquire(heartbeat=False)
    assert not first.beat()
    second.release()
    assert storage.list_folder(folder) == []


def test_a_link_to_nowhere_in_its_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "owner.json").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"owner\.json can be neither read nor created"):
        Owner(str(tmp_path), "run-1").acquire(heartbeat=False)
