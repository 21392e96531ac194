"""A Ray cluster of several nodes in a process of its own; nodes join and are lost while a test runs.

As a program (`python -m tests.helpers.cluster_process`) it prints its address and then obeys lines on standard
input, each answered by a line: `add` adds a node of one CPU, `lose PID` ends the node that process runs on.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
from ray.cluster_utils import Cluster

ROOT = Path(__file__).resolve().parent.parent.parent
STORE_BYTES = 100 * 2**20
SHUTDOWN_S = 60

_numbers = itertools.count(1)


class ClusterProcess:
    """The other end of the pipe."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.address = self._line()

    def add_node(self) -> None:
        """Add a node; returns when it has joined."""
        self._ask("add")

    def lose_node_of(self, pid: int) -> None:
        """Kill the node that a process runs on."""
        self._ask(f"lose {pid}")

    def _ask(self, line: str) -> None:
        assert self._process.stdin is not None
        print(line, file=self._process.stdin, flush=True)
        assert self._line() == "done"

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@contextlib.contextmanager
def ray_nodes(count: int) -> Iterator[ClusterProcess]:
    """A head without CPUs and `count` nodes of one CPU each."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.cluster_process", str(count)],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "RAY_TMPDIR": f"{os.environ['RAY_TMPDIR']}/c{next(_numbers)}",
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield ClusterProcess(process)
    finally:
        # At the end of its input it takes down the cluster; killed, it would leave Ray's agents behind for a minute.
        with process:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(SHUTDOWN_S)
            except subprocess.TimeoutExpired:
                process.kill()


def main() -> None:
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES) for _ in range(int(sys.argv[1]))]
    print(cluster.address, flush=True)
    for line in sys.stdin:
        command, *pids = line.split()
        if command == "add":
            nodes.append(cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES))
        else:
            above = {parent.pid for parent in psutil.Process(int(pids[0])).parents()}
            (lost,) = [node for node in nodes if node.all_processes["raylet"][0].process.pid in above]
            nodes.remove(lost)
            cluster.remove_node(lost, allow_graceful=False)
        print("done", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
