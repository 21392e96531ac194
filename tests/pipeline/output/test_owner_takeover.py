"""Taking over from a dead owner: of several takers one wins, and one that is killed is taken over too."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from patchsieve.pipeline import storage
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.output.owner import Owner
from tests.pipeline.output.world import World


@pytest.fixture
def world() -> World:
    return World()


def owner_file(folder: Path) -> dict:
    return json.loads((folder / "owner.json").read_bytes())


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
def test_of_several_takers_exactly_one_wins(
    tmp_path: Path, world: World, stale: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The clock stands still: nobody may be called stale for being slow.
    monkeypatch.setattr(world, "sleep", lambda seconds: threading.Event().wait(0.001))
    for number in range(10):
        folder = tmp_path / str(number)
        if stale:
            Owner(str(folder), "dead", machine=world.machine("a", 5)).acquire(heartbeat=False)
            del world.processes["a", 5]
        won, refused = race(str(folder), world, ["one", "two", "three", "four"])
        assert (len(won), len(refused)) == (1, 3)
        assert owner_file(folder)["run_id"] == won[0]
        assert [path.name for path in folder.iterdir()] == ["owner.json"]
