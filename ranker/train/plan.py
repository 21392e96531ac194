"""What a training is asked to do, checked against its tables before anything starts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.shards.specs import expand_shards
from patchsieve.pipeline.tables.reader import ScoreTables, TableFile
from patchsieve.pipeline.units import counted
from patchsieve.ranker.batches.index import TableIndex, index_tables
from patchsieve.ranker.batches.stream import TableBatches
from patchsieve.ranker.learning.training import Recipe
from patchsieve.ranker.learning.validation_plan import ValidationPlan, plan_validation, row_settings
from patchsieve.ranker.model.ranker import RankerConfig
from patchsieve.ranker.train.config import TrainConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """Everything the workers need; picklable.

    `images`: those to train on; `measure_steps`: steps between measurements; `teacher`, `identities` and `rows`: the
    tables' teacher, contents and settings.
    """

    config: TrainConfig
    index: TableIndex
    ranker: RankerConfig
    recipe: Recipe
    images: int
    measure_steps: int
    teacher: dict[str, object]
    identities: tuple[str, ...]
    rows: dict[str, Any]
    validation: ValidationPlan

    @property
    def workers(self) -> int:
        """How many there are, once `with_workers` has decided it."""
        assert self.config.workers != "auto", "with_workers decides it"
        return self.config.workers

    def with_workers(self, room: int) -> TrainPlan:
        """The plan with `--workers auto` decided: the most, up to `room`, that share each batch evenly."""
        if self.config.workers != "auto":
            return self
        # Tables that fill a batch of one worker fill the shares of several.
        parts = self.recipe.batch_size // self.recipe.accumulate
        found = next(count for count in range(max(1, min(room, parts)), 0, -1) if parts % count == 0)
        return dataclasses.replace(self, config=dataclasses.replace(self.config, workers=found))

    def lines(self) -> list[str]:
        """What the dry run prints."""
        rows, held = int(self.index.train_rows.sum()), int(self.index.held_out_rows.sum())
        passes = self.recipe.steps * self.recipe.batch_size / max(1, rows)
        return [
            f"tables    {len(self.index.files)}: {rows:,} rows of about {self.images:,} images, and {held:,} held out",
            f"ranker    {self.ranker.model}, head {self.ranker.head}, {self.index.visible} of "
            f"{self.ranker.positions} patches per view, context {self.config.context}",
            f"training  {self.recipe.steps:,} steps of {self.recipe.batch_size:,} rows, {passes:.1f} passes, "
            f"{self.config.views_per_image:g} views per image, {_workers(self.config.workers)}, "
            f"loss {self.recipe.loss}",
            f"measured  on {self.validation.kind}, {self.validation.rows:,} held-out rows, every "
            f"{self.measure_steps:,} steps",
        ]


def _workers(asked: int | Literal["auto"]) -> str:
    return "as many workers as there is room for" if asked == "auto" else counted(asked, "worker")


def images_of(files: Sequence[TableFile]) -> int:
    """About how many images the tables hold: rows over views, once for each shard content."""
    found: dict[str, float] = {}
    for file in files:
        images = file.rows / (file.last_view - file.first_view)
        found[file.sha256] = max(images, found.get(file.sha256, 0.0))
    return round(sum(found.values()))


def make_plan(config: TrainConfig) -> TrainPlan:
    """Read the tables' footers, keys and scores; UserError where the training cannot work."""
    tables = ScoreTables(list(config.tables))
    shards = expand_shards(config.images, root=config.root) if config.images else ()
    index = index_tables(
        tables,
        context=config.context,
        held_out_share=config.held_out,
        seed=config.seed,
        shards=shards,
        unsorted=config.unsorted,
    )
    if not index.held_out_rows.sum():
        raise UserError(
            f"--held-out {config.held_out} takes none of these images: score more, or hold out more"
        )
    # Refuses batches that the tables cannot fill.
    ranks = 1 if config.workers == "auto" else config.workers
    TableBatches(
        index, batch_size=config.batch_size // (ranks * config.accumulate), seed=config.seed, ranks=ranks
    )
    images = max(1, round(images_of(index.files) * (1 - config.held_out)))

    def steps(views: float) -> int:
        return max(1, math.ceil(views * images / config.batch_size))

    recipe = Recipe(
        loss=config.loss,
        target=None if config.target == "auto" else config.target,
        base_lr=config.base_lr,
        weight_decay=config.weight_decay,
        beta2=config.beta2,
        warmup_steps=min(steps(config.warmup_views), steps(config.views_per_image))
        if config.warmup_views > 0
        else 0,
        steps=steps(config.views_per_image),
        batch_size=config.batch_size,
        accumulate=config.accumulate,
        clip=config.clip,
        layer_decay=config.layer_decay,
    )
    ranker = RankerConfig(
        model=config.model,
        head=config.head,
        image_size=index.grid * index.patch_size,
        patch_size=index.patch_size,
        depth=config.depth,
    )
    return TrainPlan(
        config=config,
        index=index,
        ranker=ranker,
        recipe=recipe,
        images=images,
        measure_steps=min(steps(config.measure_every), recipe.steps),
        teacher=dict(tables.teacher),
        identities=tuple(
            sorted({f"{file.sha256}:{file.first_view}:{file.last_view}" for file in index.files})
        ),
        rows=row_settings(index.files),
        validation=plan_validation(index),
    )
