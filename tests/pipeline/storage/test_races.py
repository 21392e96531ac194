"""Writers that are killed, race or fail: one creator, never half a file, nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from patchsieve.pipeline import storage
from tests.helpers.checkout import ROOT
from tests.helpers.servers import S3Store


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.pipeline.storage.creator", *arguments]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


@pytest.mark.parametrize(("step", "action"), [("replace", "commit"), ("fsync", "commit"), ("link", "create")])
def test_killed_in_the_middle(tmp_path: Path, step: str, action: str) -> None:
    url = str(tmp_path / "a.json")
    if action == "commit":
        storage.commit_bytes(b"old", url, run_id="run0")
    process = start("killed", url, action, step)
    process.communicate()
    assert process.returncode == -9
    assert [info.url for info in storage.list_folder(str(tmp_path), suffix=".json")] == [url] * (
        action == "commit"
    )
    assert len(os.listdir(tmp_path)) == (2 if action == "commit" else 1)
    if action == "commit":
        assert storage.read_bytes(url) == b"old"
        assert storage.remove_temporaries(str(tmp_path), keep_run_id="run1") == 0
    assert storage.remove_temporaries(str(tmp_path), keep_run_id="run2") == 1
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]
    assert storage.create_exclusive(url, b"next") == (action == "create")


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    url = str(tmp_path / "a")
    contents = [b"a" * 300_000, b"b" * 500_000]
    storage.commit_bytes(contents[0], url, run_id="r")
    done = threading.Event()

    def write() -> None:
        for number in range(60):
            storage.commit_bytes(contents[number % 2], url, run_id="r")
        done.set()

    seen = 0
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        while not done.is_set() and not writing.done():
            assert storage.read_bytes(url) in contents
            seen += 1
        writing.result()
    assert seen


def test_one_of_sixteen_processes_creates(tmp_path: Path) -> None:
    url = str(tmp_path / "owner.json")
    racers = [start("racer", url, str(number)) for number in range(16)]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    answers = [racer.communicate()[0].strip() for racer in racers]
    assert sorted(answers) == ["False"] * 15 + ["True"]
    winner = answers.index("True")
    assert storage.read_bytes(url) == str(winner).encode() * 10_000
    assert os.listdir(tmp_path) == ["owner.json"]


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_one_of_sixteen_threads_creates(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url = str(tmp_path / "owner.json") if kind == "local" else request.getfixturevalue("s3").url("owner.json")
    barrier = threading.Barrier(16)

    def race(number: int) -> bool:
        barrier.wait()
        return storage.create_exclusive(url, b"%d" % number)

    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(race, range(16)))
    assert won.count(True) == 1
    assert storage.read_bytes(url) == b"%d" % won.index(True)
    assert not storage.create_exclusive(url, b"late")


def test_a_creator_whose_temporary_is_tidied_away_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def tidy_first(source: str, target: str) -> None:
        monkeypatch.setattr(os, "link", link)
        assert storage.remove_temporaries(str(tmp_path), keep_run_id=None) == 1
        link(source, target)

    monkeypatch.setattr(os, "link", tidy_first)
    assert storage.create_exclusive(str(tmp_path / "a"), b"1")
    assert os.listdir(tmp_path) == ["a"]


def test_stores_that_cannot_create_exclusively_say_so(
    s3: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotImplementedError, match="memory"):
        storage.create_exclusive("memory://base/a", b"1")
    s3.ignore_conditions = True
    with pytest.raises(NotImplementedError, match="ignores the condition"):
        storage.create_exclusive(s3.url("a"), b"1")

    def no_links(source: str, target: str) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(NotImplementedError, match="no hard links"):
        storage.create_exclusive(str(tmp_path / "a"), b"1")
    assert os.listdir(tmp_path) == []
