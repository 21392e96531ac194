"""One owner for an output folder: who is alive, who is not, and who wins. Clocks and processes are made up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from patchrank.pipeline import storage
from patchrank.pipeline.errors import InfrastructureError, UserError
from patchrank.pipeline.machine import Machine, process_start
from patchrank.pipeline.owner import HEARTBEAT_S, STALE_S, Owner
from tests.helpers.servers import serve_s3


class World:
    """Machines with one clock; `while_waiting` runs at every sleep."""

    def __init__(self) -> None:
        self.clock = 1000.0
        self.processes: dict[tuple[str, int], str] = {}
        self.while_waiting: Callable[[], object] = lambda: None

    def machine(self, host: str, pid: int, *, clock_error: float = 0.0, start: str = "77") -> Machine:
        self.processes[host, pid] = start
        return Machine(
            host=host,
            space="boot",
            pid=pid,
            process_start=lambda asked: self.processes.get((host, asked)),
            monotonic=lambda: self.clock,
            sleep=self.sleep,
            now=lambda: self.clock + clock_error,
        )

    def sleep(self, seconds: float) -> None:
        self.clock += seconds
        self.while_waiting()


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


@pytest.mark.parametrize("clock_error", [-86400.0, 0.0, 86400.0])
def test_a_silent_owner_elsewhere_is_watched_for_a_minute_of_our_clock(
    tmp_path: Path, world: World, clock_error: float
) -> None:
    silent = Owner(str(tmp_path), "run-1", machine=world.machine("a", 5, clock_error=clock_error))
    silent.acquire(heartbeat=False)
    Owner(str(tmp_path), "run-2", machine=world.machine("b", 6)).acquire(heartbeat=False)
    assert STALE_S <= world.clock - 1000 <= STALE_S + 2
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
    told: list[str] = []
    suspended = Owner(str(tmp_path), "run-1", machine=world.machine("a", 5), on_lost=told.append)
    suspended.acquire(heartbeat=False)
    Owner(str(tmp_path), "run-2", machine=world.machine("b", 6)).acquire(heartbeat=False)
    before = owner_file(tmp_path)
    assert not suspended.beat()
    assert suspended.lost.is_set()
    assert told == [f"{tmp_path} was taken over by run run-2 on b (process 6)"]
    suspended.release()
    assert owner_file(tmp_path) == before


def test_an_owner_file_removed_by_hand_comes_back(tmp_path: Path, world: World) -> None:
    owner = Owner(str(tmp_path), "run-1", machine=world.machine("a", 5))
    owner.acquire(heartbeat=False)
    (tmp_path / "owner.json").unlink()
    assert owner.beat()
    assert owner_file(tmp_path)["run_id"] == "run-1"


def test_an_answer_that_was_lost_is_recognised_as_ours(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = storage.create_exclusive

    def answer_lost(url: str, data: bytes) -> bool:
        create(url, data)
        return create(url, data)

    monkeypatch.setattr(storage, "create_exclusive", answer_lost)
    owner = Owner(str(tmp_path), "run-1", machine=world.machine("a", 5))
    owner.acquire(heartbeat=False)
    assert world.clock == 1000
    assert owner.beat()


def test_a_late_taker_does_not_remove_a_live_owner(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    Owner(str(tmp_path), "dead", machine=world.machine("a", 5)).acquire(heartbeat=False)
    del world.processes["a", 5]
    quick = Owner(str(tmp_path), "quick", machine=world.machine("a", 6))
    late = Owner(str(tmp_path), "late", machine=world.machine("a", 7))
    create = storage.create_exclusive

    def just_before_the_claim(url: str, data: bytes) -> bool:
        monkeypatch.setattr(storage, "create_exclusive", create)
        quick.acquire(heartbeat=False)
        return create(url, data)

    # `late` has found the owner dead, and is overtaken before it can claim the removal.
    monkeypatch.setattr(storage, "create_exclusive", just_before_the_claim)
    world.while_waiting = quick.beat
    with pytest.raises(UserError, match="run quick"):
        late.acquire(heartbeat=False)
    assert owner_file(tmp_path)["run_id"] == "quick"
    assert not quick.lost.is_set()
    assert [path.name for path in tmp_path.iterdir()] == ["owner.json"]


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


@pytest.mark.parametrize("calls_before", [0, 1])
def test_a_taker_killed_half_way_is_taken_over_too(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch, calls_before: int
) -> None:
    Owner(str(tmp_path), "dead", machine=world.machine("a", 5)).acquire(heartbeat=False)
    del world.processes["a", 5]
    remove, calls = storage.remove, []

    def kill_at_removal(url: str) -> None:
        calls.append(url)
        if len(calls) > calls_before:
            raise Killed
        remove(url)

    monkeypatch.setattr(storage, "remove", kill_at_removal)
    with pytest.raises(Killed):
        Owner(str(tmp_path), "half-way", machine=world.machine("a", 6)).acquire(heartbeat=False)
    monkeypatch.setattr(storage, "remove", remove)
    del world.processes["a", 6]
    assert any(path.suffix == ".claim" for path in tmp_path.iterdir())
    Owner(str(tmp_path), "third", machine=world.machine("a", 7)).acquire(heartbeat=False)
    assert world.clock == 1000
    assert owner_file(tmp_path)["run_id"] == "third"
    assert [path.name for path in tmp_path.iterdir()] == ["owner.json"]


def race(folder: str, world: World, names: list[str]) -> tuple[list[str], list[str]]:
    """Acquire on as many threads at once; the winner beats until the others have given up."""
    start, over = threading.Barrier(len(names)), threading.Event()
    won: list[str] = []
    refused: list[str] = []

    def take(name: str, pid: int) -> None:
        owner = Owner(folder, name, machine=world.machine("a", pid))
        start.wait()
        try:
            owner.acquire(heartbeat=False)
        except UserError:
            refused.append(name)
            if len(refused) == len(names) - 1:
                over.set()
            return
        won.append(name)
        while len(won) == 1 and not over.wait(0.001):
            assert owner.beat()

    threads = [threading.Thread(target=take, args=(name, 10 + i)) for i, name in enumerate(names)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return won, refused


@pytest.mark.parametrize("stale", [False, True])
def test_of_several_takers_exactly_one_wins(tmp_path: Path, world: World, stale: bool) -> None:
    # The clock stands still: nobody may be called stale for being slow.
    world.sleep = lambda seconds: threading.Event().wait(0.001)  # type: ignore[method-assign, assignment, return-value]
    for number in range(10):
        folder = tmp_path / str(number)
        if stale:
            Owner(str(folder), "dead", machine=world.machine("a", 5)).acquire(heartbeat=False)
            del world.processes["a", 5]
        won, refused = race(str(folder), world, ["one", "two", "three", "four"])
        assert (len(won), len(refused)) == (1, 3)
        assert owner_file(folder)["run_id"] == won[0]
        assert [path.name for path in folder.iterdir()] == ["owner.json"]


def test_the_heartbeat_thread_outlives_a_store_that_is_away(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("patchrank.pipeline.owner.HEARTBEAT_S", 0.001)
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
    assert owner_files(tmp_path) == []


def owner_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


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


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator:
    with serve_s3() as store:
        for name, value in store.environment().items():
            monkeypatch.setenv(name, value)
        # Else the client of another test's server would be used again.
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        yield store


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
