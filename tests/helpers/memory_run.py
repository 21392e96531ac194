"""`python -m tests.helpers.memory_run OUT TEACHER SHARD...`: scores as an actor does; prints peaks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from patchsieve.pipeline.compute.device import keep_freed_memory
from tests.helpers.score_runs import local_scoring, score_config

STATUS = Path("/proc/self/status")


def peak_bytes() -> int:
    """Most memory that this process has held at a time since its program began; on Linux only."""
    fields = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024


def main() -> None:
    """Score the shards in the order given, one after the other."""
    keep_freed_memory()
    out, teacher, *shards = sys.argv[1:]
    with local_scoring(score_config(shards, out, teacher, batch_size=16)) as (scoring, todo):
        peaks = {}
        for shard in todo:
            peaks[shard.name] = (scoring.score(shard).rows, peak_bytes())
    print(json.dumps(peaks))


if __name__ == "__main__":
    main()
