"""A node of a training is drained with notice, as spot nodes are: which steps are made twice, and what that uses up.

    python -m tests.faults.drained [--notice 30]

Two workers on three nodes train, and may not fail once (`--max-restarts 0`); checkpoints are an hour apart, so that the
notice alone makes them. The node of a worker is drained as `ray drain-node` does it, and Ray goes on with the node that
is left. Every worker notes the steps that it makes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from patchsieve.jobs import train
from patchsieve.pipeline.cluster.nodes import this_place
from patchsieve.ranker.batches.batch import Batch
from patchsieve.ranker.train import loop
from patchsieve.ranker.train import run as train_run
from tests.helpers.checkout import ROOT, python_path
from tests.helpers.pixel_tables import write_pixel_table
from tests.pipeline.score_on_ray.cluster_process import ray_nodes

STEPS = 160
STEP_S = 0.3
"""A step takes at least so long: more of them than one go by while a node is drained."""
FIRST = 10
"""Steps before the node is drained."""
LIMIT_S = 600.0
OPTIONS = """
    --model vit_tiny_patch16_224 --depth 1 --head token --batch-size 16 --warmup-views 2 --held-out 0.2
    --base-lr 0.01 --views-per-image 80 --measure-every 80 --checkpoint-minutes 60 --max-restarts 0
    --workers 2 --gpus-per-worker 0
"""


def noting(notes: Path) -> Any:
    """What a worker runs instead of its work: the same, with a line for each step."""

    def noted(settings: dict[str, Any]) -> None:
        step = loop.Fit._step
        node = this_place().node_id

        def slow(self: loop.Fit, stream: Iterator[Batch]) -> None:
            time.sleep(STEP_S)
            step(self, stream)
            with (notes / str(os.getpid())).open("a") as scratch:
                scratch.write(f"{self.training.step} {self._worker.rank} {os.getpid()} {node}\n")

        loop.Fit._step = slow  # type: ignore[method-assign]
        train_run._work(settings)  # that of the worker's process, where nothing was replaced

    return noted


def steps_of(notes: Path) -> list[tuple[int, int, int, str]]:
    """Step, rank, process and node of every step that a worker has made."""
    lines = [line.split() for file in notes.iterdir() for line in file.read_text().splitlines()]
    return [(int(step), int(rank), int(pid), node) for step, rank, pid, node in lines]


def drained(folder: Path, notice: int) -> str:
    """What came of it, in a line; ends with an error where it is not as promised."""
    table, notes, out = folder / "a.parquet", folder / "notes", folder / "out"
    notes.mkdir()
    write_pixel_table(table, images=range(40), views=2)
    with ray_nodes() as cluster:
        for _ in range(2):
            cluster.add_node()
        arguments = ["--train", str(notes), str(table), "--out", str(out), *OPTIONS.split()]
        command = [sys.executable, "-m", "tests.faults.drained", *arguments]
        environment = {**os.environ, "RAY_ADDRESS": cluster.address}
        with subprocess.Popen(command, cwd=ROOT, env=environment) as process:
            limit = time.monotonic() + LIMIT_S
            while len(made := steps_of(notes)) < 2 * FIRST:
                if process.poll() is not None or time.monotonic() > limit:
                    process.kill()
                    sys.exit("the training did not begin")
                time.sleep(0.05)
            taken = next(pid for _, _, pid, node in made if node != cluster.head)
            cluster.drain_node_of(taken, seconds=notice)
            code = process.wait(LIMIT_S)
    if code:
        sys.exit(f"the training ended with {code}: the drain used up a failure")
    made = steps_of(notes)
    if (processes := len({pid for _, _, pid, _ in made})) != 4:
        sys.exit(f"{processes} processes trained, not two before the drain and two after it")
    by_rank = [Counter(step for step, rank, _, _ in made if rank == number) for number in range(2)]
    if any(steps.keys() != set(range(1, STEPS + 1)) for steps in by_rank):
        sys.exit("not every step was made by both workers")
    again = max(steps.total() - STEPS for steps in by_rank)
    if again > 1:
        sys.exit(f"{again} steps were made twice")
    return f"{STEPS} steps, a node drained with {notice} s notice after {FIRST}: {again} made twice, no failure used up"


def main() -> None:
    """Run it; with `--train`, be the training."""
    if sys.argv[1:2] == ["--train"]:
        train_run._work = noting(Path(sys.argv[2]))
        train.main(sys.argv[3:])
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("--notice", type=int, default=30)
    notice = parser.parse_args().notice
    folder = Path(tempfile.mkdtemp(prefix="d", dir="/tmp"))
    settings = {
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATCHSIEVE_DECLARED_GPUS": "cpu",
    }
    folders = {"PYTHONPATH": python_path(ROOT), "RAY_TMPDIR": str(folder), "TMPDIR": str(folder)}
    os.environ.update({**settings, **folders})
    try:
        print(drained(folder, notice))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
