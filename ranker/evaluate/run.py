"""From the configuration of `patchsieve evaluate` to what was measured, in one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args, get_type_hints

from patchsieve.pipeline.checks import flag
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.row_config import RowConfig
from patchsieve.pipeline.runs.waiting import doing
from patchsieve.pipeline.scoring.api import Teacher, load_teacher
from patchsieve.pipeline.shards.specs import expand_shards
from patchsieve.pipeline.units import counted
from patchsieve.ranker.evaluate.config import EvaluateConfig
from patchsieve.ranker.evaluate.dense import DenseTeacher, measure_dense
from patchsieve.ranker.evaluate.dense_table import read_dense
from patchsieve.ranker.evaluate.images import EvaluationImages, read_evaluation_images
from patchsieve.ranker.evaluate.measure import Evaluation, check_teacher, evaluate_ranker
from patchsieve.ranker.evaluate.partitions import PartitionScorer
from patchsieve.ranker.model.checkpoint import LoadedRanker, load_ranker

ROWS = "rows"
"""Name of the settings of the tables' rows in what training stores with a ranker."""

_DEFAULTS = {"mask_ratio": 0.9, "removal": "decoder", "metric": "l1"}


def evaluate(config: EvaluateConfig, say: Callable[[str], None]) -> Evaluation:
    """Read the ranker, the teacher and the images, score the images or read their table, and measure.

    `say` gets a line on each step. Raises UserError for what cannot be measured, before any scoring where that can be
    told; InfrastructureError where a store fails.
    """
    shards = expand_shards(config.shards)
    ranker = load_ranker(config.ranker)
    settings, notes = dense_settings(ranker, config)
    teacher = load_teacher(
        config.teacher,
        precision=None if config.precision == "auto" else config.precision,
        output_space=None if config.output_space == "auto" else config.output_space,
    )
    check_teacher(ranker, {"name": teacher.file.name, "digest": teacher.file.digest})
    images = read_evaluation_images(
        shards,
        ranker,
        image_field=config.image_field,
        limit=config.limit_images,
        held_out_only=config.only_held_out,
        unsorted=config.unsorted,
    )
    say(f"images     {len(images)}, from {counted(images.shards, 'shard')}")
    if images.unreadable:
        notes.append(f"{counted(images.unreadable, 'sample')} without an image that can be read: left out")
    dense = _dense(config, images, teacher, settings, say)
    if len(dense.keys) < len(images):
        notes.append(f"{counted(len(images) - len(dense.keys), 'image')} left out: the table lacks views")
    say(f"measuring  {ranker.name} and the baselines on {len(dense.keys)} images")
    with doing("measuring the ranker and the baselines"):
        return evaluate_ranker(
            ranker,
            dense,
            teacher=teacher,
            reconstruct=config.reconstruct,
            seed=config.seed,
            extra_notes=[*notes, *dense_notes(dense, ranker, config.reliability)],
        )


def dense_settings(ranker: LoadedRanker, config: EvaluateConfig) -> tuple[dict[str, Any], list[str]]:
    """Mask ratio, removal and metric of the dense scores: those asked for, else those of the ranker's tables.

    Raises UserError where its tables differ in one that was not asked for.
    """
    stored = ranker.extra.get(ROWS) or {}
    settings: dict[str, Any] = {}
    assumed = []
    for name, default in _DEFAULTS.items():
        values = stored.get(name, [])
        values = values if isinstance(values, list) else [values]
        asked = getattr(config, name)
        if asked is not None:
            settings[name] = asked
        elif len(values) == 1:
            settings[name] = values[0]
        elif values:
            raise UserError(
                f"{ranker.name} was fitted to tables of {name} {' and '.join(map(str, values))}: choose with "
                f"{flag(name)}"
            )
        else:
            settings[name] = default
            assumed.append(f"{name} {default}")
    note = f"{ranker.name} does not tell how its tables were scored: takes {', '.join(assumed)}"
    _check(settings, ranker.name)
    return settings, [note] if assumed and config.dense is None else []


def _check(settings: dict[str, Any], name: str) -> None:
    """A ranker's file may say anything; UserError for what is no setting of rows."""
    kinds = get_type_hints(RowConfig)
    for field in ("removal", "metric"):
        if settings[field] not in get_args(kinds[field]):
            raise UserError(f"{name}: the {field} of its tables is {settings[field]!r}, which is not known")
    if not (isinstance(settings["mask_ratio"], float) and 0 < settings["mask_ratio"] < 1):
        raise UserError(f"{name}: the mask ratio of its tables is {settings['mask_ratio']!r}")


def _dense(
    config: EvaluateConfig,
    images: EvaluationImages,
    teacher: Teacher,
    settings: dict[str, Any],
    say: Callable[[str], None],
) -> DenseTeacher:
    aggregate = None if config.aggregate == "auto" else config.aggregate
    if config.dense is not None:
        return read_dense(config.dense, images, digest=teacher.file.digest, aggregate=aggregate)
    return measure_dense(
        images,
        PartitionScorer(teacher, **settings, seed=config.seed, batch_size=config.batch_size),
        masks=None if config.masks == "auto" else config.masks,
        aggregate=aggregate,
        reliability=config.reliability,
        max_partitions=config.max_partitions,
        say=say,
    )


def dense_notes(dense: DenseTeacher, ranker: LoadedRanker, reliability: float) -> list[str]:
    """What to keep in mind about dense scores."""
    how, notes = dense.how, []
    if not dense.rho >= reliability:
        notes.append(
            f"the dense scores reach a reliability of {dense.rho:.2f} with {how.partitions} partitions, not "
            f"{reliability:g}: their ceiling is less certain, more partitions raise it"
        )
    if how.same_noise:
        notes.append(
            "the way to aggregate was chosen on the partitions that are measured: the reliability looks slightly "
            "better than it is"
        )
    if how.choice is not None and how.choice.cross_agreement is not None:
        notes.append(
            f"uniform and spread masks agree at {how.choice.cross_agreement:.2f}, where their noise leaves at most "
            f"{how.choice.cross_ceiling:.2f}: they measure slightly different things"
        )
    seeds = (ranker.extra.get(ROWS) or {}).get("seed", [])
    if how.seed in (seeds if isinstance(seeds, list) else [seeds]):
        notes.append(
            f"seed {how.seed} is that of the ranker's tables: their masks may be the same; choose another"
        )
    return notes
