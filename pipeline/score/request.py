"""What a score run is asked to do, checked against teacher and output before anything starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.images.patches import visible_count
from patchsieve.pipeline.part import parse_part
from patchsieve.pipeline.row_config import DECODER, Precision, RowConfig, count_tokens
from patchsieve.pipeline.score.config import ScoreConfig
from patchsieve.pipeline.shards.specs import Shard, expand_shards
from patchsieve.pipeline.storage import absolute_url
from patchsieve.pipeline.tables.schema import row_fields
from patchsieve.pipeline.teacher.checkpoint import TeacherFile, read_teacher


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreRequest:
    """Shards and teacher of a run. `visible`: patches shown in a view, V."""

    config: ScoreConfig
    shards: Sequence[Shard]
    teacher: TeacherFile
    visible: int

    def rows(self, precision: Precision) -> RowConfig:
        """The settings of the rows, once the precision is known."""
        return self.config.rows(size=self.teacher.config.image_size, precision=precision, decoder=DECODER)

    def known_rows(self, stored: Mapping[str, Any] | None) -> RowConfig | None:
        """The settings of the rows, if no probe is needed: asked for, or fixed by the output's earlier run.

        `stored`: the row fields that the output's `config.json` holds, None for a new output.
        """
        asked = self.config.precision
        if asked != "auto":
            return self.rows(asked)
        return self.rows(stored["precision"]) if stored is not None else None

    def fields(self, rows: RowConfig) -> dict[str, Any]:
        """What `config.json` holds and later runs are compared with."""
        return row_fields(rows, self.teacher.digest, self.teacher.config.output_space)

    @property
    def notes(self) -> list[str]:
        """What the user should know before the work is done."""
        if self.config.store == "none":
            return ["note      no pixels are stored: training will need the shards"]
        return []


def make_request(config: ScoreConfig) -> ScoreRequest:
    """Find shards and teacher; UserError where the combination cannot work."""
    # Of a cluster that was there before, workers stand in other folders.
    config = dataclasses.replace(config, out=absolute_url(config.out))
    shards = expand_shards(config.shards, root=config.root)[: config.limit_shards]
    part = parse_part(config.part)
    if part is not None:
        shards = [shard for shard in shards if part.takes(shard.id)]
    space = None if config.output_space == "auto" else config.output_space
    teacher = read_teacher(config.teacher, output_space=space)
    positions = teacher.config.positions
    visible = visible_count(positions, config.mask_ratio)
    if not 2 <= visible < positions:
        raise UserError(
            f"--mask-ratio {config.mask_ratio} shows {visible} of {positions} patches; "
            f"leaving one out takes at least 2 visible and 1 hidden: choose a ratio up to {1 - 2 / positions:.2f}"
        )
    tokens = config.rows(size=1, precision="fp32", decoder="any").frozen_tokens
    if tokens is not None:
        count_tokens(tokens, positions - visible)
    if config.metric in ("ssim", "psnr") and teacher.config.output_space == "unknown":
        raise UserError(
            f"--metric {config.metric} compares images, and {teacher.name} does not tell what it predicts: "
            "add --output-space pixels or normalised"
        )
    return ScoreRequest(config=config, shards=shards, teacher=teacher, visible=visible)
