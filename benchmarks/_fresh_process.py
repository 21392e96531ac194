"""Work in a fresh process, whose peak of memory is that work's alone: `python -m ... NAME JSON`."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

STATUS = Path("/proc/self/status")


def peak_memory() -> int:
    """Most bytes of memory that this process has held at a time.

    Linux tells it per program run; `getrusage`, for others, includes what the parent held when it forked.
    """
    if STATUS.exists():
        fields = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def run_fresh(name: str, arguments: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> Any:
    """What the function of this module returns in a process of its own."""
    command = [sys.executable, "-m", "benchmarks._fresh_process", name, json.dumps(dict(arguments))]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})}
    )
    return json.loads(done.stdout)


def score_shards(shards: list[str], out: str, teacher: str, batch_size: int, threads: int) -> dict[str, Any]:
    """Score shards one after the other as an actor does; bytes at the peak, before and after the first shard."""
    import torch

    from patchsieve.pipeline.compute.device import keep_freed_memory
    from patchsieve.pipeline.output.folder import OutputFolder
    from patchsieve.pipeline.score.config import ScoreConfig
    from patchsieve.pipeline.score.request import make_request
    from patchsieve.pipeline.score.shard import ShardScoring, teacher_record
    from patchsieve.pipeline.scoring.scorer import Scorer
    from patchsieve.pipeline.tables.schema import SCORES
    from patchsieve.pipeline.teacher.build import build_teacher

    keep_freed_memory()
    torch.set_num_threads(threads)
    config = ScoreConfig(shards=tuple(shards), out=out, teacher=teacher, views="1", precision="fp32")
    request = make_request(config)
    rows = request.rows("fp32")
    scoring = ShardScoring(
        Scorer(build_teacher(request.teacher), mask_ratio=rows.mask_ratio, batch_size=batch_size),
        teacher_record(request.teacher),
        rows,
        OutputFolder(out, SCORES, run_id="benchmark"),
        provenance={"run_id": "benchmark"},
        threads=threads,
    )
    before, started = peak_memory(), time.perf_counter()
    peaks, views = [], 0
    for shard in request.shards:
        result = scoring.score(shard)
        assert result.failed is None, result.failed
        views += result.rows
        peaks.append(peak_memory())
    return {"before": before, "peaks": peaks, "views": views, "seconds": time.perf_counter() - started}


def score_views(size: str, precision: Any, batch_size: int) -> dict[str, Any]:
    """Score a few views of random pixels with a random teacher; bytes at the peak and before."""
    import torch

    from benchmarks._teachers import random_teacher
    from patchsieve.pipeline.compute.device import keep_freed_memory
    from patchsieve.pipeline.scoring.scorer import Scorer

    keep_freed_memory()
    before, model = peak_memory(), random_teacher(size)
    config = model.config
    scorer = Scorer(model, precision=precision, batch_size=batch_size)
    pixels = torch.zeros(batch_size, config.positions, config.patch_values, dtype=torch.uint8)
    scorer.score(pixels, torch.arange(scorer.visible).expand(batch_size, -1))
    return {"before": before, "peak": peak_memory()}


def expand(specs: list[str]) -> dict[str, Any]:
    """Find shards; seconds, and bytes at the peak and before."""
    from patchsieve.pipeline.shards.specs import expand_shards

    before, started = peak_memory(), time.perf_counter()
    shards = expand_shards(specs)
    seconds = time.perf_counter() - started
    return {"before": before, "peak": peak_memory(), "shards": len(shards), "seconds": seconds}


def decide(specs: list[str], out: str, identity: str) -> dict[str, Any]:
    """Find shards and decide which of them an output holds; seconds of both, and bytes at the peak and before."""
    from collections import Counter

    from patchsieve.pipeline.output.folder import OutputFolder
    from patchsieve.pipeline.shards.specs import expand_shards
    from patchsieve.pipeline.tables.schema import SCORES

    before, started = peak_memory(), time.perf_counter()
    shards = expand_shards(specs)
    found = time.perf_counter()
    checks = OutputFolder(out, SCORES, run_id="benchmark").check(shards, identity)
    states = Counter(check.state.value for check in checks.values())
    return {
        "before": before,
        "peak": peak_memory(),
        "states": states,
        "finding_seconds": found - started,
        "deciding_seconds": time.perf_counter() - found,
    }


def status(out: str) -> dict[str, Any]:
    """`patchsieve status` of an output: seconds, of them of a processor, shards done, bytes at the peak."""
    from patchsieve.pipeline.runs.status import read_status

    started, worked = time.perf_counter(), time.process_time()
    done = read_status(out).done
    seconds, worked = time.perf_counter() - started, time.process_time() - worked
    return {"seconds": seconds, "processor_seconds": worked, "done": done, "peak": peak_memory()}


def tick(source: str, out: str) -> dict[str, Any]:
    """A tick that writes nothing, without jobs: seconds, of them of a processor, corpora by outcome, peak of memory."""
    from collections import Counter

    from patchsieve.pipeline.cluster.jobs_api import Submission
    from patchsieve.pipeline.cluster.known_job import KnownJob
    from patchsieve.pipeline.schedule.config import OnceConfig
    from patchsieve.pipeline.schedule.run import tick_once

    class NoJobs:
        def jobs(self) -> list[KnownJob]:
            return []

        def submit(self, job: Submission) -> bool:
            raise AssertionError(f"{job.id} is submitted in a dry run")

    said: list[str] = []
    config = OnceConfig(source=(source,), out=out, dry_run=True, max_jobs=1_000_000)
    started, worked = time.perf_counter(), time.process_time()
    tick_once(config, said.append, connect=lambda _address: NoJobs())
    seconds, worked = time.perf_counter() - started, time.process_time() - worked
    outcomes = Counter(line.partition(": ")[2] for line in said)
    return {"seconds": seconds, "processor_seconds": worked, "outcomes": outcomes, "peak": peak_memory()}


def main() -> None:
    """Run what the command line asks for and print its result."""
    known = (score_shards, score_views, expand, decide, status, tick)
    functions: dict[str, Callable[..., Any]] = {function.__name__: function for function in known}
    print(json.dumps(functions[sys.argv[1]](**json.loads(sys.argv[2]))))


if __name__ == "__main__":
    main()
