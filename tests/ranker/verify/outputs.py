"""Small outputs of score and prune, made in this process, as whole runs leave them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from patchsieve.pipeline.identity import digest_of
from patchsieve.pipeline.output.beside import lost_outputs
from patchsieve.pipeline.output.folder import OutputFolder, new_run_id
from patchsieve.pipeline.pruned.index import INDEX
from patchsieve.pipeline.score.request import make_request
from patchsieve.pipeline.tables.schema import SCORES
from patchsieve.ranker.prune.request import make_prune_request
from tests.helpers.photos import photo_samples, write_shard
from tests.helpers.prune_runs import prune_config, pruning_of
from tests.helpers.score_runs import local_scoring, score_config

Run = Callable[[], list[str]]
"""Does what is left of an output, and returns the names of the shards that were."""


def small_shards(folder: Path) -> list[Path]:
    """Two shards of three photos, the first with a picture that is none."""
    shards = []
    for number in range(2):
        samples = list(photo_samples(3, number, height=60, width=80))
        if not number:
            samples.append(("bad", {"jpg": b"no picture"}))
        shards.append(write_shard(folder / f"part-{number}.tar", samples))
    return shards


def scored(shards: list[Path], out: Path, teacher: str) -> Run:
    """A run of score."""
    config = score_config(shards, out, teacher, batch_size=2)

    def run() -> list[str]:
        output = OutputFolder(str(out), SCORES, run_id=new_run_id())
        with local_scoring(config, run_id=output.run_id) as (scoring, todo):
            done = [scoring.score(shard) for shard in todo]
            assert not any(result.failed for result in done)
            scoring.close()
        output.write_run({"state": "complete", "missing": []}, shards=make_request(config).shards)
        return [shard.name.rpartition("/")[2] for shard in todo]

    return run


def pruned(shards: list[Path], out: Path, ranker: str) -> Run:
    """A run of prune."""
    request = make_prune_request(prune_config(shards, out, ranker, keep=0.5))

    def run() -> list[str]:
        output = OutputFolder(str(out), INDEX, run_id=new_run_id())
        output.adopt_config(request.fields, other={})
        plan = output.plan(request.shards, digest_of(request.fields))
        lost = lost_outputs(str(out), plan.done)
        todo = [shard for shard in request.shards if shard.id not in plan.done or shard.id in lost]
        pruning = pruning_of(request)
        for shard in todo:
            assert pruning.run(shard).failed is None
        output.write_run({"state": "complete", "missing": []}, shards=request.shards)
        return [shard.name.rpartition("/")[2] for shard in todo]

    return run
