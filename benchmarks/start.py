"""How long a user waits: for `patchsieve --help`, and for the first row of a score run.

The score run is the command as typed, bundled teacher, one small shard: Python, imports, Ray, the actor with its probes
of precision and batch size, the first batch, the committed table. On one that the command starts for itself, on a Ray
that runs already, and submitted to that one as a job, as schedules do it. Files are in the system's cache after a first
round that does not count. Goals: 0.5 and 15 seconds.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import ray
import tyro
from ray.job_submission import JobSubmissionClient

from benchmarks._common import show, write_json
from benchmarks._photos import pack_shard, photo_files

CLI = (sys.executable, "-m", "patchsieve")
POLL_S = 0.02
Seconds = tuple[float, float]
"""Until the first table is committed, and until the command has ended."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Benchmark of starting up on this machine."""

    rounds: int = 3
    """Rounds; medians are reported."""
    photos: int = 8
    """Photos in the shard; one view of each."""
    out: Path = Path("bench-out/start.json")
    """Results as JSON."""


def help_seconds() -> float:
    """Seconds of `patchsieve --help`."""
    started = time.perf_counter()
    subprocess.run([*CLI, "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def seconds_of(begin: Callable[[list[str]], Callable[[], int | None]], shard: str) -> Seconds:
    """Of a score run. `begin` starts its command, and gives what tells its exit code, None while it runs."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out")
        command = [*CLI, "score", shard, "--out", str(out), "--teacher", "tiny", "--views", "1"]
        started = time.perf_counter()
        exit_code = begin(command)
        first = None
        while (code := exit_code()) is None:
            if first is None and any(out.glob("scores/*.parquet")):
                first = time.perf_counter() - started
            time.sleep(POLL_S)
        end = time.perf_counter() - started
        if code or first is None:
            sys.exit(f"{' '.join(command)} ended with {code}")
        return first, end


def typed(ray_address: str) -> Callable[[list[str]], Callable[[], int | None]]:
    """Starts a command as it is typed; `local`: on a Ray of its own."""

    def begin(command: list[str]) -> Callable[[], int | None]:
        environment = {**os.environ, "RAY_ADDRESS": ray_address}
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment).poll

    return begin


def submitted(dashboard: str) -> Callable[[list[str]], Callable[[], int | None]]:
    """Starts a command as a job of the cluster with this dashboard, once that takes jobs."""
    client = JobSubmissionClient(dashboard)
    for left in reversed(range(60)):
        try:
            client.submit_job(entrypoint="true")
            break
        except RuntimeError:  # its agent comes up later
            if not left:
                raise
            time.sleep(1)

    def begin(command: list[str]) -> Callable[[], int | None]:
        job = client.submit_job(entrypoint=shlex.join(command))

        def exit_code() -> int | None:
            info = client.get_job_info(job)
            return (
                (info.driver_exit_code or int(info.status != "SUCCEEDED"))
                if info.status.is_terminal()
                else None
            )

        return exit_code

    return begin


def main(options: Options) -> None:
    """Measure, print a table, write the JSON."""
    found: dict[str, list[float]] = {}

    def measure(place: str, begin: Callable[[list[str]], Callable[[], int | None]]) -> None:
        for number in range(1 + options.rounds):
            first, end = seconds_of(begin, shard)
            seconds = {f"score {place}: first table committed": first, f"score {place}: ended": end}
            for name, value in seconds.items() if number else ():
                found.setdefault(name, []).append(value)

    with tempfile.TemporaryDirectory() as folder:
        shard = pack_shard(Path(folder, "photos.tar"), photo_files((), options.photos), options.photos)
        help_seconds()
        found["patchsieve --help"] = [help_seconds() for _ in range(options.rounds)]
        measure("on a Ray of its own", typed("local"))
        # The Jobs API is part of the dashboard.
        cluster = ray.init(include_dashboard=True, log_to_driver=False, logging_level="ERROR")
        measure("on a running Ray", typed(ray.get_runtime_context().gcs_address))
        measure("submitted to it as a job", submitted(f"http://{cluster.dashboard_url}"))
    ray.shutdown()
    show(
        f"Seconds from the command, tiny teacher, {options.photos} photos, one view",
        ["", "median", "from-to"],
        [
            [name, f"{statistics.median(seconds):.2f}", f"{min(seconds):.2f}-{max(seconds):.2f}"]
            for name, seconds in found.items()
        ],
    )
    write_json({"start": found}, options.out)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
