"""Decoder processes: what they make is what this process makes, and what ends them ends nothing else."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from socket import socketpair

import psutil
import pytest

from patchsieve.pipeline.errors import ContentError, InfrastructureError
from patchsieve.pipeline.score import decoders as room
from patchsieve.pipeline.score.decoder import from_message, to_message
from patchsieve.pipeline.score.decoders import Decoders
from patchsieve.pipeline.score.shard import ShardScoring
from patchsieve.pipeline.score.view_feed import views_here
from patchsieve.pipeline.scoring.views import View
from tests.helpers.forks import worker_of
from tests.helpers.photos import photo, photo_samples, write_shard
from tests.helpers.score_processes import wait_until
from tests.helpers.score_runs import local_scoring, rows_of, save_small_teacher, score_config
from tests.pipeline.score.decoders_left import PATCH, ROWS, views_of


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_small_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    made = Decoders(ROWS, PATCH, 1)
    yield made
    made.close()


def same(found: list[View], expected: list[View]) -> bool:
    return all(
        (one.pixels == other.pixels).all()
        and (one.visible == other.visible).all()
        and (one.sample_key, one.view, one.image_size, one.box, one.jpeg)
        == (other.sample_key, other.view, other.image_size, other.box, other.jpeg)
        for one, other in zip(found, expected, strict=True)
    )


def test_processes_make_the_same_views(decoders: Decoders) -> None:
    for key, data in (("a", photo(1, 90, 120)), ("odd \udcff\n\u202e name", photo(2, 70, 50))):
        assert same(views_of(decoders, key, data), views_here(ROWS, PATCH)(key, data))


def test_whole_views_and_stored_ones_come_along() -> None:
    rows = dataclasses.replace(ROWS, store="view", metric="ssim", crop="center")
    decoders = Decoders(rows, PATCH, 1)
    assert same(views_of(decoders, "k", photo(1)), views_here(rows, PATCH)("k", photo(1)))
    decoders.close()


def test_a_bad_image_is_told(decoders: Decoders) -> None:
    with pytest.raises(ContentError) as here:
        views_here(ROWS, PATCH)("k", photo(1)[:200])
    with pytest.raises(ContentError) as there:
        views_of(decoders, "k", photo(1)[:200])
    assert str(there.value) == str(here.value)
    assert len(views_of(decoders, "k", photo(1))) == 3


@pytest.mark.parametrize(
    ("by", "times", "error", "message"),
    [
        (signal.SIGSEGV, 1, None, ""),
        (signal.SIGSEGV, 2, ContentError, "ends the process that decodes it by SIGSEGV"),
        (signal.SIGPROF, 1, ContentError, "more than 60 s of processor time"),
        (signal.SIGKILL, 1, InfrastructureError, "ended by SIGKILL"),
    ],
)
def test_what_ends_a_decoder(
    by: signal.Signals,
    times: int,
    error: type[Exception] | None,
    message: str,
    decoders: Decoders,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once may be chance, twice is the image; who takes too long is known at once; a kill is nobody's fault."""
    left, ask = times, room._Decoder.ask

    def doomed(decoder: room._Decoder, message: bytes) -> bytes:
        nonlocal left
        if left:
            left -= 1
            os.kill(worker_of(decoder._process.pid), by)
            decoder._process.wait()
        return ask(decoder, message)

    monkeypatch.setattr(room._Decoder, "ask", doomed)
    if error is None:
        assert len(views_of(decoders, "k", photo(1))) == 3
    else:
        with pytest.raises(error, match=message):
            views_of(decoders, "k", photo(1))
    assert same(views_of(decoders, "next", photo(2)), views_here(ROWS, PATCH)("next", photo(2)))


def test_an_image_that_takes_too_long_ends_its_decoder() -> None:
    """With the real timer, and in a library that never looks at Python's signals."""
    ours, theirs = socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.pipeline.score.endless_decoder", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
        )
    connection = Connection(ours.detach())
    connection.send_bytes(to_message({"rows": dataclasses.asdict(ROWS), "patch_size": PATCH}))
    assert from_message(connection.recv_bytes())[0] == {"ready": worker_of(process.pid)}
    connection.send_bytes(to_message({"key": "k"}, b"data"))
    with pytest.raises((EOFError, ConnectionResetError)):
        connection.recv_bytes()
    assert process.wait() == -signal.SIGPROF
    connection.close()


def test_decoders_end_with_who_made_them() -> None:
    command = [sys.executable, "-m", "tests.pipeline.score.decoders_left"]
    told = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    child = int(told)

    def gone() -> bool:
        """Also where nobody is there to reap it."""
        try:
            return psutil.Process(child).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    # Its pipe to us, for whose end `run` has waited, is closed a moment before.
    wait_until(gone, "the decoder ends")


def test_a_table_is_the_same_by_processes(tmp_path: Path, teacher: str) -> None:
    samples = [*photo_samples(5, height=90, width=120), ("bad", {"jpg": photo(1)[:300]})]
    shard = str(write_shard(tmp_path / "a.tar", samples))
    results = {}
    for name, processes in (("threads", False), ("processes", True)):
        with local_scoring(score_config([shard], tmp_path / name, teacher)) as (scoring, todo):
            by = ShardScoring(
                scoring._scorer,
                scoring._teacher,
                scoring._rows,
                scoring._output,
                provenance={"run_id": "r"},
                threads=2,
                processes=processes,
            )
            results[name] = by.score(todo[0])
            by.close()
    assert results["processes"].faults == results["threads"].faults
    assert results["processes"].rows == results["threads"].rows > 0
    assert rows_of(tmp_path / "processes") == rows_of(tmp_path / "threads")
