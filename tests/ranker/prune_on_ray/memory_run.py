"""`python -m tests.ranker.prune_on_ray.memory_run OUT RANKER SHARD...`: prune with a small store; prints peaks.

One actor takes the shards in order; the peak of its process's memory after each is in bytes.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import ray

from benchmarks._fresh_process import peak_memory
from patchsieve.pipeline.runs.config_file import config_to_yaml
from patchsieve.ranker.prune.request import make_prune_request
from patchsieve.ranker.prune_on_ray import waves as ray_prune
from patchsieve.ranker.prune_on_ray.run import prune
from patchsieve.ranker.prune_on_ray.worker import PruneWorker
from tests.helpers.prune_runs import prune_config
from tests.helpers.score_runs import Watched

STORE = 80 * 2**20
"""Bytes of the object store, about the least that Ray takes."""


def telling_worker(scratch: Path) -> type[PruneWorker]:
    """A worker that writes down its peak after every shard."""

    class Worker(PruneWorker):
        def __call__(self, row: dict[str, Any]) -> list[dict[str, str]]:
            answer = super().__call__(row)
            with scratch.open("a") as file:
                file.write(f"{row['index']} {peak_memory()}\n")
            return answer

    return Worker


def main() -> None:
    """Prune the shards."""
    out, ranker, *shards = sys.argv[1:]
    ray.init(address="local", num_cpus=2, num_gpus=0, include_dashboard=False, object_store_memory=STORE)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder) / "peaks"
        setattr(ray_prune, "PruneWorker", telling_worker(scratch))  # noqa: B010
        config = prune_config(shards, out, ranker)
        summary = prune(make_prune_request(config), Watched(), settings=config_to_yaml(config))
        peaks = [[int(number) for number in line.split()] for line in scratch.read_text().splitlines()]
    print(json.dumps({"exit_code": summary.exit_code, "images": summary.images, "peaks": peaks}))


if __name__ == "__main__":
    main()
