"""`python -m tests.helpers.memory_run OUT TEACHER SHARD...`: scores as an actor does; prints peaks."""

from __future__ import annotations

import json
import sys

from benchmarks._fresh_process import peak_memory
from patchsieve.pipeline.compute.device import keep_freed_memory
from tests.helpers.score_runs import local_scoring, score_config


def main() -> None:
    """Score the shards in the order given, one after the other."""
    keep_freed_memory()
    out, teacher, *shards = sys.argv[1:]
    with local_scoring(score_config(shards, out, teacher, batch_size=16)) as (scoring, todo):
        peaks = {}
        for shard in todo:
            peaks[shard.name] = (scoring.score(shard).rows, peak_memory())
    print(json.dumps(peaks))


if __name__ == "__main__":
    main()
