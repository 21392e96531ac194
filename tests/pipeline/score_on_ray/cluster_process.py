"""A Ray cluster of several nodes in a process of its own; nodes join and are lost while a test runs.

As a program (`python -m tests.pipeline.score_on_ray.cluster_process`) it prints its address and the id of its head, and
then obeys lines on standard input, each answered by a line: `add NAME=VALUE...` adds a node of one CPU and one declared
GPU, whose processes have these variables, and tells its id; `lose PID` kills the node that a process runs on,
`drain PID SECONDS` has Ray drain it, as `ray drain-node` does before a node is taken.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

from tests.helpers.checkout import ROOT, python_path
from tests.helpers.forks import above

STORE_BYTES = 100 * 2**20
SHUTDOWN_S = 60

_numbers = itertools.count(1)


class ClusterProcess:
    """The other end of the pipe."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.address, self.head = self._line().split()

    def add_node(self, **environment: str) -> str:
        """Add a node whose processes have these variables; returns its id when it has joined."""
        return self._ask(" ".join(["add", *(f"{name}={value}" for name, value in environment.items())]))

    def lose_node_of(self, pid: int) -> None:
        """Kill the node that a process runs on."""
        self._ask(f"lose {pid}")

    def drain_node_of(self, pid: int, *, seconds: int) -> None:
        """Tell Ray that the node will end in so many seconds; it has taken note when this returns."""
        self._ask(f"drain {pid} {seconds}")

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None
        print(line, file=self._process.stdin, flush=True)
        answer = self._line()
        assert answer, f"the cluster ended at {line!r}"
        return answer

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@contextlib.contextmanager
def ray_nodes() -> Iterator[ClusterProcess]:
    """A head with a CPU and a GPU, which nodes may join."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.pipeline.score_on_ray.cluster_process"],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": python_path(ROOT),
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
    size = {"num_cpus": 1, "num_gpus": 1, "object_store_memory": STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args={**size, "include_dashboard": False})
    print(cluster.address, cluster.head_node.node_id, flush=True)  # type: ignore[attr-defined]
    nodes: list[Any] = []
    for line in sys.stdin:
        command, *words = line.split()
        answer = "done"
        if command == "add":
            variables = dict(word.split("=", 1) for word in words)
            nodes.append(cluster.add_node(**size, env_vars=variables))
            answer = nodes[-1].node_id
        elif command == "lose":
            nodes.remove(lost := _node_of(nodes, int(words[0])))
            cluster.remove_node(lost, allow_graceful=False)
        else:
            _drain(cluster.address, _node_of(nodes, int(words[0])).node_id, seconds=int(words[1]))
        print(answer, flush=True)
    cluster.shutdown()


def _node_of(nodes: list[Any], pid: int) -> Any:
    starters = {process.pid for process in above(pid)}
    (node,) = [node for node in nodes if node.all_processes["raylet"][0].process.pid in starters]
    return node


def _drain(address: str, node_id: str, *, seconds: int) -> None:
    ray = Path(sys.executable).with_name("ray")
    node = ["--address", address, "--node-id", node_id, "--deadline-remaining-seconds", str(seconds)]
    reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "test"]
    subprocess.run(
        [ray, "drain-node", *node, *reason],
        check=True,
        stdout=sys.stderr,
    )


if __name__ == "__main__":
    main()
