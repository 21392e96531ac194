"""A Ray cluster of two nodes with its dashboard, and so its Jobs API, in a process of its own.

As a program (`python -m tests.pipeline.cluster.jobs_cluster`) it prints the address of the Jobs API and runs until its
standard input ends.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from ray.cluster_utils import Cluster
from ray.job_submission import JobSubmissionClient

from tests.helpers.checkout import ROOT, python_path
from tests.helpers.score_processes import wait_until

STORE_BYTES = 100 * 2**20
SHUTDOWN_S = 60
# Seconds until Ray kills a job that was asked to stop. A busy machine must not turn stopping into killing.
STOP_WAIT_S = 60


@contextlib.contextmanager
def jobs_cluster() -> Iterator[str]:
    """A head that takes no actors and a node of two CPUs; gives the address of the Jobs API."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.pipeline.cluster.jobs_cluster"],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": python_path(ROOT),
            # Jobs call `python` and `patchsieve`, and should get those of this environment.
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_TMPDIR": f"{os.environ['RAY_TMPDIR']}/j",
            "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S),
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            url = f"http://{process.stdout.readline().strip()}"
            wait_until(lambda: _takes_jobs(url), "the cluster takes jobs")
            yield url
        finally:
            process.stdin.close()
            try:
                process.wait(SHUTDOWN_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _takes_jobs(url: str) -> bool:
    """Whether the agent that starts jobs is there, which comes up after the dashboard."""
    try:
        JobSubmissionClient(url).submit_job(entrypoint="true")
    except RuntimeError:
        return False
    return True


def main() -> None:
    head = {
        "num_cpus": 0,
        "include_dashboard": True,
        "dashboard_port": 0,
        # The usual port may belong to another cluster on this machine; its agent would then start no job.
        "dashboard_agent_listen_port": 0,
        "object_store_memory": STORE_BYTES,
    }
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(num_cpus=2, object_store_memory=STORE_BYTES, dashboard_agent_listen_port=0)
    print(cluster.head_node.webui_url, flush=True)  # type: ignore[attr-defined]
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main()
