"""How long a user waits: for `patchsieve --help`, and for the first row of a score run.

The score run is the command as typed, bundled teacher, one small shard: Python, imports, Ray, the actor with its probes
of precision and batch size, the first batch, the committed table. On a Ray that runs already, as for `ray job submit`,
and on one that the command starts for itself. Files are in the system's cache after a first round that does not count.
Goals: 0.5 and 15 seconds.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ray
import tyro

from benchmarks._common import show, write_json
from benchmarks._photos import pack_shard, photo_files

CLI = (sys.executable, "-m", "patchsieve")
POLL_S = 0.02


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


def score_seconds(shard: str, ray_address: str) -> tuple[float, float]:
    """Seconds until the first table is committed, and until the command has ended; `local`: on a Ray of its own."""
    environment = {**os.environ, "RAY_ADDRESS": ray_address}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out")
        started = time.perf_counter()
        command = [*CLI, "score", shard, "--out", str(out), "--teacher", "tiny", "--views", "1"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) as process:
            while process.poll() is None and not any(out.glob("scores/*.parquet")):
                time.sleep(POLL_S)
            first = time.perf_counter() - started
            code = process.wait()
        if code:
            sys.exit(f"{' '.join(command)} ended with {code}")
        return first, time.perf_counter() - started


def main(options: Options) -> None:
    """Measure, print a table, write the JSON."""
    found: dict[str, list[float]] = {}

    def measure(place: str, address: str) -> None:
        for number in range(1 + options.rounds):
            first, end = score_seconds(shard, address)
            seconds = {f"score {place}: first table committed": first, f"score {place}: ended": end}
            for name, value in seconds.items() if number else ():
                found.setdefault(name, []).append(value)

    with tempfile.TemporaryDirectory() as folder:
        shard = pack_shard(Path(folder, "photos.tar"), photo_files((), options.photos), options.photos)
        help_seconds()
        found["patchsieve --help"] = [help_seconds() for _ in range(options.rounds)]
        measure("on a Ray of its own", "local")
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        measure("on a running Ray", ray.get_runtime_context().gcs_address)
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
