"""Score jobs in tests: a small teacher on disk, a run with or without Ray, and what it left in its output."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow.parquet as pq
import torch

from patchsieve.pipeline.identity import digest_of
from patchsieve.pipeline.output.folder import OutputFolder, new_run_id
from patchsieve.pipeline.output.records import read_footer
from patchsieve.pipeline.part import parse_part
from patchsieve.pipeline.runs.config_file import config_to_yaml
from patchsieve.pipeline.runs.progress import Totals
from patchsieve.pipeline.score.config import ScoreConfig
from patchsieve.pipeline.score.messages import ShardResult
from patchsieve.pipeline.score.request import make_request
from patchsieve.pipeline.score.shard import ShardScoring, teacher_record
from patchsieve.pipeline.score_on_ray.summary import ScoreSummary
from patchsieve.pipeline.scoring.scorer import Scorer
from patchsieve.pipeline.shards.specs import Shard
from patchsieve.pipeline.tables.reader import read_scores
from patchsieve.pipeline.tables.schema import SCORES
from patchsieve.pipeline.teacher.architecture import OutputSpace
from patchsieve.pipeline.teacher.build import build_teacher, save_teacher
from tests.helpers.servers import Trouble
from tests.helpers.teachers import SMALL, random_teacher

THREADS = 1
"""CPUs of an actor, and threads of a run without Ray: scores are bit-equal at one thread count."""

Row = dict[str, Any]
Rows = dict[tuple[str, str, int], Row]


def save_small_teacher(folder: Path, *, seed: int = 0, output_space: OutputSpace = "pixels") -> str:
    """A teacher of random weights (48 px, a grid of 6 x 6, 3 patches visible of 36 at 0.9); returns its path."""
    path = str(folder / f"small-{output_space}-{seed}.safetensors")
    save_teacher(
        random_teacher(dataclasses.replace(SMALL, output_space=output_space), seed), path, name="small"
    )
    return path


def score_config(shards: Iterable[Path | str], out: Path | str, teacher: str, **changes: Any) -> ScoreConfig:
    """A small run in fp32 on one actor without GPU; `changes` are fields of ScoreConfig."""
    settings: dict[str, Any] = {
        "views": "2",
        "batch_size": 4,
        "precision": "fp32",
        "gpus_per_actor": 0.0,
        "cpus_per_actor": THREADS,
        "max_actors": 1,
    }
    given = tuple(str(shard) for shard in shards)
    return ScoreConfig(shards=given, out=str(out), teacher=teacher, **{**settings, **changes})


class Watched:
    """A display that keeps the totals it is shown."""

    def __init__(self) -> None:
        self.seen: list[Totals] = []

    def __enter__(self) -> Watched:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to put back."""

    def update(self, totals: Totals) -> None:
        self.seen.append(totals)


def run_score(config: ScoreConfig, display: Watched | None = None) -> ScoreSummary:
    """The job on the Ray of this process."""
    from patchsieve.pipeline.score_on_ray.run import score

    return score(make_request(config), display or Watched(), settings=config_to_yaml(config))


@contextlib.contextmanager
def local_scoring(
    config: ScoreConfig, *, run_id: str | None = None
) -> Iterator[tuple[ShardScoring, list[Shard]]]:
    """What an actor does, in this process, and the shards that are left to do in the output."""
    request = make_request(config)
    rows = request.known_rows(None)
    assert rows is not None, "give a precision"
    assert isinstance(config.batch_size, int)
    output = OutputFolder(config.out, SCORES, run_id=run_id or new_run_id(parse_part(config.part)))
    output.adopt_config(request.fields(rows), other={})
    todo = output.plan(request.shards, digest_of(request.fields(rows))).todo
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        scorer = Scorer(
            build_teacher(request.teacher),
            mask_ratio=rows.mask_ratio,
            removal=rows.removal,
            metric=rows.metric,
            batch_size=config.batch_size,
            frozen_tokens=rows.frozen_tokens,
        )
        provenance = {"run_id": output.run_id}
        record = teacher_record(request.teacher)
        yield (
            ShardScoring(
                scorer, record, rows, output, provenance=provenance, threads=2, unsorted=config.unsorted
            ),
            todo,
        )
    finally:
        torch.set_num_threads(threads)


def score_here(config: ScoreConfig) -> dict[str, ShardResult]:
    """Score what is left without Ray, one shard after the other; results by shard name."""
    with local_scoring(config) as (scoring, shards):
        return {shard.name: scoring.score(shard) for shard in shards}


def rows_of(out: Path | str) -> Rows:
    """Rows of an output, or of one table, by (shard, sample_key, view); no two have one identity."""
    listed = read_scores(str(out)).to_pylist()
    rows = {(row["shard"], row["sample_key"], row["view"]): row for row in listed}
    assert len(rows) == len(listed)
    return rows


def errors_of(out: Path | str) -> list[Row]:
    """Rows of all errors files, in the order of their shards' ids."""
    files = sorted((Path(out) / "errors").glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def footers_of(out: Path | str) -> dict[str, dict[str, Any]]:
    """What the tables of an output say of themselves, by shard name."""
    footers = [read_footer(str(file)) for file in sorted((Path(out) / "scores").glob("*.parquet"))]
    return {footer.metadata["shard"]["name"]: footer.metadata for footer in footers}


def without_scores(rows: Rows) -> Rows:
    """What is equal bit for bit whatever the batch size."""
    return {key: {name: value for name, value in row.items() if name != "score"} for key, row in rows.items()}


def breaks_off(size: int) -> list[Trouble]:
    """What a server does to one reading of a file of `size` bytes: half of it, then no more."""
    return [Trouble("cut", after=size // 2), Trouble("status", status=403)]
