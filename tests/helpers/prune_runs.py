"""Prune jobs in tests: a small ranker on disk, a run without Ray, and what it left in its output."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from patchsieve.pipeline.identity import digest_of
from patchsieve.pipeline.output.folder import new_run_id
from patchsieve.pipeline.output.records import read_footer
from patchsieve.pipeline.pruned.index import INDEX
from patchsieve.ranker.model.checkpoint import save_ranker
from patchsieve.ranker.model.names import BASELINE_PREFIX
from patchsieve.ranker.prune.config import PruneConfig
from patchsieve.ranker.prune.ranking import PruneResult
from patchsieve.ranker.prune.request import PruneRequest, make_prune_request
from patchsieve.ranker.prune.shard import ShardPruning
from patchsieve.ranker.select.patch_scorer import PatchScorer
from tests.helpers.rankers import TEACHER, small_ranker

Row = dict[str, Any]


def save_small_ranker(folder: Path, *, seed: int = 0, temperature: float = 0.5) -> str:
    """A ranker of random weights (64 px, a grid of 4 x 4); returns its folder."""
    path = str(folder / f"ranker-{seed}")
    save_ranker(path, small_ranker(seed, head="token"), teacher=TEACHER, tables=[], temperature=temperature)
    return path


def prune_config(shards: Iterable[Path | str], out: Path | str, ranker: str, **changes: Any) -> PruneConfig:
    """A small run on one actor without GPU; `changes` are fields of PruneConfig."""
    settings: dict[str, Any] = {
        "batch_size": 4,
        "gpus_per_actor": 0.0,
        "cpus_per_actor": 1,
        "max_actors": 1,
        "max_bad": 1.0,
    }
    if not changes.get("ranker", ranker).startswith(BASELINE_PREFIX):
        settings["precision"] = "fp32"
    given = tuple(str(shard) for shard in shards)
    return PruneConfig(**{"shards": given, "out": str(out), "ranker": ranker, **settings, **changes})


def pruning_of(request: PruneRequest, *, threads: int = 2) -> ShardPruning:
    """What an actor does with a shard, in this process."""
    run_id = new_run_id()
    scorer = PatchScorer(request.source, device=torch.device("cpu"), batch_size=request.config.batch_size)
    return ShardPruning(request, scorer, run_id=run_id, threads=threads, provenance={"run_id": run_id})


def prune_here(config: PruneConfig, *, threads: int = 2) -> dict[str, PruneResult]:
    """Prune every shard without Ray, one after the other; results by file name."""
    request = make_prune_request(config)
    pruning = pruning_of(request, threads=threads)
    return {shard.name.rpartition("/")[2]: pruning.run(shard) for shard in request.shards}


def members_of(path: Path) -> list[tuple[str, bytes]]:
    """Names and data of a tar's members, by the standard library."""
    with tarfile.open(path) as archive:
        found = []
        for member in archive:
            file = archive.extractfile(member)
            assert file is not None
            found.append((member.name, file.read()))
    return found


def index_of(out: Path | str) -> list[Row]:
    """Rows of all indexes, in the order of their shards' ids."""
    files = sorted((Path(out) / INDEX.folder).glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def index_footers(out: Path | str) -> dict[str, dict[str, Any]]:
    """What the indexes say of themselves, by shard name."""
    footers = [read_footer(str(file)) for file in sorted((Path(out) / INDEX.folder).glob("*.parquet"))]
    return {footer.metadata["shard"]["name"]: footer.metadata for footer in footers}


def contents(out: Path | str) -> dict[str, Any]:
    """Everything that must not depend on kills, actors or threads: bytes of tars, rows and identities of indexes."""
    tars = {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted((Path(out) / "shards").rglob("*"))
        if path.is_file()
    }
    told = {
        name: {key: value for key, value in footer.items() if key != "provenance"}
        for name, footer in index_footers(out).items()
    }
    return {"tars": tars, "rows": digest_of(index_of(out)), "footers": told}
