"""Score jobs as a user starts them: by command line, in this process or in one of their own."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from patchsieve.jobs.score import main
from patchsieve.pipeline.runs.config_file import config_to_yaml
from patchsieve.pipeline.score.config import ScoreConfig
from tests.helpers.checkout import ROOT, python_path
from tests.helpers.faults import Faults
from tests.helpers.forks import worker_of

DEADLINE_S = 240.0
STOP_S = 2.2
"""A signal is obeyed within 2 s; the rest is for noticing it."""

_numbers = itertools.count(1)


def wait_until(condition: Callable[[], object], what: str, *, seconds: float = DEADLINE_S) -> None:
    """Return as soon as the condition holds; the test fails when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for: {what}"
        time.sleep(0.01)


def command_line(config: ScoreConfig, folder: Path) -> list[str]:
    """The arguments of `patchsieve score` for this configuration."""
    file = folder / f"config-{next(_numbers)}.yaml"
    file.write_bytes(config_to_yaml(config))
    return ["--config", str(file)]


def run_here(config: ScoreConfig, folder: Path) -> int:
    """Run the job on the Ray of this process; returns its exit code."""
    with pytest.raises(SystemExit) as ended:
        main(command_line(config, folder))
    assert isinstance(ended.value.code, int)
    return ended.value.code


@dataclasses.dataclass
class ScoreProcess:
    """A job in a process of its own, the leader of its process group."""

    process: subprocess.Popen[bytes]
    log: Path
    ray_folder: Path

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self.log.read_text()

    @property
    def pid(self) -> int:
        """The process that runs the job, which leads a group."""
        return worker_of(self.process.pid)

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        """Return when the condition holds; fails when the process ends before."""
        wait_until(lambda: condition() or self.process.poll() is not None, what)
        assert condition(), f"ended before: {what}\n{self.output}"

    def end(self) -> int:
        """Wait for its end; returns the exit code, or the negative number of the signal that killed it."""
        try:
            return self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running after {DEADLINE_S} s\n{self.output}")

    def stop(self, number: signal.Signals, *, group: bool = False) -> int:
        """Send a signal to the process or to its group; the exit code. It must end within `STOP_S`.

        Seconds in which the machine stood still, processors or disk, are not the job's.
        """
        with _standstill(self.log.parent) as lost:
            began = time.monotonic()
            (os.killpg if group else os.kill)(self.pid, number)
            code = self.end()
            seconds = time.monotonic() - began
        print(f"{number.name}: ended after {seconds:.2f} s, {sum(lost):.2f} s of them lost")
        assert seconds - sum(lost) < STOP_S, self.output
        return code


@contextlib.contextmanager
def _standstill(folder: Path) -> Iterator[list[float]]:
    """Seconds that a small write took, or a short sleep beyond its time, while the block ran."""
    lost: list[float] = []
    ended = threading.Event()

    def probe() -> None:
        while not ended.is_set():
            began = time.monotonic()
            with (folder / "standstill").open("wb") as file:
                file.write(b"probe")
                os.fsync(file.fileno())
            ended.wait(0.02)
            lost.append(max(0.0, time.monotonic() - began - 0.1))

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        yield lost
    finally:
        ended.set()
        thread.join()


@contextlib.contextmanager
def score_process(
    config: ScoreConfig, folder: Path, faults: Faults | None = None, **environment: str
) -> Iterator[ScoreProcess]:
    """The job in a process that is killed, if it still runs, at the end of the block.

    It starts a Ray of its own unless `RAY_ADDRESS` is given.
    """
    number = next(_numbers)
    arguments = command_line(config, folder)
    faults = faults or Faults(folder=str(folder))
    log = folder / f"run-{number}.log"
    # A Ray of its own takes no notice of others. The paths of its sockets must be short.
    ray_folder = Path(os.environ["RAY_TMPDIR"], str(number))
    with log.open("wb") as out:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.helpers.faulty_run",
                json.dumps(dataclasses.asdict(faults)),
                *arguments,
            ],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": python_path(ROOT),
                "RAY_TMPDIR": str(ray_folder),
                **environment,
            },
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield ScoreProcess(process, log, ray_folder)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def leftovers(out: Path) -> list[str]:
    """Files below an output that no finished run leaves there: temporaries, claims, an owner."""
    return [
        str(path.relative_to(out))
        for path in out.rglob("*")
        if path.name.startswith(".") or path.suffix in (".tmp", ".claim") or path.name == "owner.json"
    ]
