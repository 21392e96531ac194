"""How fast a worker trains a ranker, and how much of a step it waits for rows (goal: below 5 %).

    python -m benchmarks.train [--table TABLES... --images SHARDS...] [--sizes tiny small] [--seconds 20]

Without a table, synthetic photos are scored by a toy teacher: one table with patches, one with views. Visible context
reads patches, full context stored views, and the photos themselves where views are made again.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from benchmarks._common import show, write_json
from benchmarks._photos import pack_shard, synthetic_photo
from benchmarks._teachers import save_random_teacher
from patchsieve.pipeline.output.folder import OutputFolder
from patchsieve.pipeline.score.config import ScoreConfig
from patchsieve.pipeline.score.request import make_request
from patchsieve.pipeline.score.shard import ShardScoring, teacher_record
from patchsieve.pipeline.scoring.scorer import Scorer
from patchsieve.pipeline.shards.specs import expand_shards
from patchsieve.pipeline.tables.reader import ScoreTables
from patchsieve.pipeline.tables.schema import SCORES
from patchsieve.pipeline.teacher.build import build_teacher
from patchsieve.ranker.batches.index import Context, TableIndex, index_tables
from patchsieve.ranker.batches.stream import TableBatches
from patchsieve.ranker.learning.training import Recipe, Training
from patchsieve.ranker.model.ranker import Ranker, RankerConfig

GOAL = 0.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Benchmark of training steps on this machine."""

    table: tuple[str, ...] = ()
    """Score tables; default: two of synthetic photos."""
    images: tuple[str, ...] = ()
    """The shards of these tables, for full context without stored views."""
    sizes: tuple[Literal["tiny", "small"], ...] = ("tiny", "small")
    """Rankers: ViT-Ti and ViT-S with patches of 16 px."""
    photos: int = 400
    """Synthetic photos, four views each."""
    batch_size: int = 256 if torch.cuda.is_available() else 64
    """Rows per step."""
    seconds: float = 20.0
    """Measured time per row of the result."""
    decode_threads: int = max(1, (os.cpu_count() or 1) - 1)
    """Threads that decode views beside the steps."""
    out: Path = Path("bench-out/train.json")
    """Results as JSON."""


def make_table(folder: Path, shard: str, store: str) -> str:
    """The table of a shard, scored here by a teacher that costs next to nothing."""
    teacher, _ = save_random_teacher("toy", folder)
    out = folder / store
    config = ScoreConfig(
        shards=(shard,), out=str(out), teacher=teacher, views="4", precision="fp32", store=store
    )
    request = make_request(config)
    rows = request.rows("fp32")
    scoring = ShardScoring(
        Scorer(build_teacher(request.teacher), mask_ratio=rows.mask_ratio, batch_size=64),
        teacher_record(request.teacher),
        rows,
        OutputFolder(str(out), SCORES, run_id="benchmark"),
        provenance={"run_id": "benchmark"},
        threads=os.cpu_count() or 1,
    )
    result = scoring.score(request.shards[0])
    assert result.failed is None, result.failed
    return str(out / "scores")


def train_for(index: TableIndex, size: str, options: Options) -> dict[str, Any]:
    """Steps for the time asked: rows per second, and the share of it spent waiting for rows."""
    cuda = torch.cuda.is_available()
    config = RankerConfig(
        model=f"vit_{size}_patch16_224",
        image_size=index.grid * index.patch_size,
        patch_size=index.patch_size,
    )
    recipe = Recipe(
        loss="list_mle",
        target=None,
        base_lr=1.5e-4,
        weight_decay=0.06,
        beta2=0.95,
        warmup_steps=10,
        steps=10**6,
        batch_size=options.batch_size,
        accumulate=1,
        clip=0.0,
    )
    device = torch.device("cuda" if cuda else "cpu")
    training = Training(
        Ranker(config).to(device),
        recipe,
        device=device,
        half=torch.float16 if cuda else None,
        full=index.context == "full",
    )
    batches = TableBatches(
        index, batch_size=options.batch_size, seed=0, decode_threads=options.decode_threads
    )
    steps, waited = 0, 0.0
    with batches.stream() as stream:
        for _ in range(3):  # the first window, and what the first steps set up
            training.train_step(itertools.islice(stream, 1))
        started = time.perf_counter()
        while not steps or time.perf_counter() - started < options.seconds:
            asked = time.perf_counter()
            batch = next(stream)
            waited += time.perf_counter() - asked
            training.train_step([batch])
            steps += 1
        seconds = time.perf_counter() - started
    return {
        "rows_per_second": steps * options.batch_size / seconds,
        "step_seconds": seconds / steps,
        "waited": waited / seconds,
        "worked": 1 - waited / seconds,
        "steps": steps,
    }


def cases(folder: Path, options: Options) -> dict[str, TableIndex]:
    """What is read, by name."""
    if options.table:
        shards = expand_shards(options.images) if options.images else ()
        given: tuple[Context, ...] = ("full",) if shards else ("visible", "full")
        tables = ScoreTables(list(options.table))
        return {
            f"{context}, given": index_tables(tables, context=context, shards=shards)
            for context in given
            if context == "visible" or shards or "pixels" in tables.files[0].columns
        }
    shard = pack_shard(folder / "photos.tar", [synthetic_photo(seed) for seed in range(40)], options.photos)
    patches = ScoreTables(make_table(folder, shard, "patches"))
    views = ScoreTables(make_table(folder, shard, "view"))
    return {
        "visible, patches": index_tables(patches, context="visible"),
        "full, stored views": index_tables(views, context="full"),
        "full, from photos": index_tables(patches, context="full", shards=expand_shards([shard])),
    }


def main(options: Options) -> None:
    """Measure, print a table, write the JSON."""
    with tempfile.TemporaryDirectory() as folder:
        found = {
            f"{size}: {name}": train_for(index, size, options)
            for name, index in cases(Path(folder), options).items()
            for size in options.sizes
        }
    show(
        f"Training, batches of {options.batch_size}; waiting should stay below {GOAL:.0%}",
        ["", "rows/s", "ms per step", "waited"],
        [
            [
                name,
                f"{result['rows_per_second']:.1f}",
                f"{1000 * result['step_seconds']:.0f}",
                f"{result['waited']:.1%}",
            ]
            for name, result in found.items()
        ],
    )
    write_json(
        {"train": {"options": dataclasses.asdict(options) | {"out": str(options.out)}, **found}}, options.out
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
