"""Dense teacher scores out of a table that `patchsieve score --crop center` has written, in place of scoring."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.scoring.aggregate import Aggregate
from patchsieve.pipeline.tables.reader import ScoreTables, TableFile
from patchsieve.ranker.evaluate.dense import DenseMethod, DenseTeacher, make_dense
from patchsieve.ranker.evaluate.images import EvaluationImages
from patchsieve.ranker.evaluate.partitions import PartitionScores, choose

_SETTINGS = ("mask_ratio", "removal", "metric", "masks", "precision", "seed")
_COLUMNS = ("sample_key", "view", "visible", "score")


def read_dense(
    source: str, images: EvaluationImages, *, digest: str, aggregate: Aggregate | None = None
) -> DenseTeacher:
    """Dense scores from a table or output folder, of those images that it holds all partitions of.

    `digest`: of the teacher that the table must be of. Complete pairs of partitions are used, in the order of views.
    `aggregate` None: the one by which the halves agree best. Raises UserError for a table of another teacher, of random
    crops, of several settings, or with fewer than two partitions of at least 2 of the images.
    """
    tables = ScoreTables(source)
    if tables.teacher["digest"] != digest:
        raise UserError(
            f"--dense {source} was scored by {tables.teacher['name']} ({tables.teacher['digest'][:16]}), "
            f"the ranker learned from {digest[:16]}"
        )
    settings = _settings(tables.files, source)
    positions = tables.teacher["grid"] ** 2
    group = -(-positions // tables.visible)
    files = [file for file in tables.files if file.sha256 in set(images.contents)]
    if not files:
        raise UserError(f"--dense {source} holds no table of these shards: none has their content")
    views = _complete_views(files, group, source)
    held = _Rows(images, views, tables.visible)
    held.read(files)
    complete = np.flatnonzero(held.seen_IK.all(axis=1))
    if len(complete) < 2:
        raise UserError(
            f"--dense {source} holds all {len(views)} views of {len(complete)} of the {len(images)} images, "
            "measuring takes at least 2"
        )
    used = images.take(complete.tolist())
    scores = PartitionScores(
        visible=held.visible_IKV[complete],
        score=held.score_IKV[complete],
        partition_views=group,
        positions=positions,
    )
    if not np.isfinite(scores.score).all():
        raise UserError(f"--dense {source} has scores that are not finite numbers: score those shards again")
    ways = get_args(Aggregate) if aggregate is None else (aggregate,)
    chosen = choose({settings["masks"]: scores}, ways)
    how = DenseMethod(
        source=source,
        aggregate=chosen.aggregate,
        partitions=scores.partitions,
        views=len(views),
        **settings,
        choice=chosen if len(ways) > 1 else None,
        choice_images=len(used) if len(ways) > 1 else 0,
        same_noise=len(ways) > 1,
    )
    teacher = {"name": str(tables.teacher["name"]), "digest": digest}
    return make_dense(used, scores, teacher, how)


def _settings(files: Sequence[TableFile], source: str) -> dict[str, Any]:
    """Settings of the rows, which all tables must share; UserError where they are no partitions of one crop."""
    configs = {file.settings: json.loads(file.settings) for file in files}
    first = next(iter(configs.values()))
    for config in configs.values():
        if config["crop"] != "center":
            raise UserError(
                f"--dense {source} holds crops of crop {config['crop']}: score with --crop center, whose views "
                "together show every patch"
            )
        differing = [name for name in _SETTINGS if config[name] != first[name]]
        if differing:
            name = differing[0]
            raise UserError(
                f"--dense {source}: tables differ in {name}: {first[name]} and {config[name]}; give those of one"
            )
    return {name: first[name] for name in _SETTINGS}


def _complete_views(files: Sequence[TableFile], group: int, source: str) -> NDArray[np.int64]:
    """Views of the partitions that every shard content has, an even number of them."""
    by_content: dict[str, set[int]] = {}
    for file in files:
        by_content.setdefault(file.sha256, set()).update(range(file.first_view, file.last_view))
    common = set.intersection(*by_content.values())
    last = max(common, default=-1) // group + 1
    whole = [
        number for number in range(last) if common.issuperset(range(number * group, (number + 1) * group))
    ]
    whole = whole[: len(whole) // 2 * 2]
    if not whole:
        raise UserError(
            f"--dense {source} has no two partitions of the grid: score with --views {2 * group} or more, in "
            f"steps of {group}"
        )
    return (np.array(whole)[:, None] * group + np.arange(group)).reshape(-1)


@dataclasses.dataclass
class _Rows:
    """Rows of the images asked for, filled in as they are met."""

    images: EvaluationImages
    views: NDArray[np.int64]
    visible: int

    def __post_init__(self) -> None:
        shape = (len(self.images), len(self.views))
        self.visible_IKV = np.zeros((*shape, self.visible), np.int16)
        self.score_IKV = np.zeros((*shape, self.visible), np.float32)
        self.seen_IK = np.zeros(shape, np.bool_)
        pairs = zip(self.images.contents, self.images.keys, strict=True)
        self._place = {pair: place for place, pair in enumerate(pairs)}
        self._column = {int(view): column for column, view in enumerate(self.views)}

    def read(self, files: Sequence[TableFile]) -> None:
        """Read the tables, batch by batch."""
        for file in files:
            for batch in ScoreTables(file.url).iter_batches(_COLUMNS):
                keys, views = batch["sample_key"].to_pylist(), batch["view"].to_pylist()
                visible_NV, score_NV = (
                    batch[name].flatten().to_numpy().reshape(-1, self.visible)
                    for name in ("visible", "score")
                )
                for row, (key, view) in enumerate(zip(keys, views, strict=True)):
                    place, column = self._place.get((file.sha256, key)), self._column.get(view)
                    if place is not None and column is not None:
                        self.visible_IKV[place, column] = visible_NV[row]
                        self.score_IKV[place, column] = score_NV[row]
                        self.seen_IK[place, column] = True
