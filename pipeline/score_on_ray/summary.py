"""What a score run came to: counts, rates, exit code, and the lines at its end."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from patchsieve.pipeline.output.records import Record
from patchsieve.pipeline.runs.end import RunEnd, end_of_run
from patchsieve.pipeline.score.messages import ShardResult
from patchsieve.pipeline.units import byte_size, counted, duration


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreSummary(RunEnd):
    """The end of a score run: `rows` of all shards that were asked for, the rest of this run. Times in seconds."""

    rows: int
    images: int
    views: int
    waited_share: float
    table_bytes: int

    def lines(self, out: str) -> list[str]:
        """What a user reads at the end."""
        speed = (
            f"{self.views / self.seconds:.1f} views/s" if self.views and self.seconds else "nothing scored"
        )
        return [
            f"{self.first_line()}, {self.rows:,} rows in {out}",
            f"this run: {counted(self.images, 'image')}, {counted(self.views, 'view')} in {duration(self.seconds)}, "
            f"{speed}, teacher waited {self.waited_share:.0%}, {byte_size(self.table_bytes)} of tables",
            *self.fault_lines("samples without a row"),
        ]


def score_summary(
    *,
    before: Mapping[str, Record],
    results: Mapping[str, ShardResult],
    waited_share: float,
    views: int,
    **run: Any,
) -> ScoreSummary:
    """Sum a score run up. `views`: of an image; `run`: the rest of what `end_of_run` takes."""
    committed = [result for result in results.values() if result.failed is None]
    rows = sum(item.rows for item in before.values()) + sum(item.rows for item in committed)
    # Rows, not samples: of those, `--sample` may have left most aside.
    end = end_of_run(before=before, results=results, good=rows / views, **run)
    return ScoreSummary(
        **vars(end),
        rows=rows,
        images=sum(result.images for result in committed),
        views=sum(result.rows for result in committed),
        waited_share=waited_share,
        table_bytes=sum(result.table_bytes for result in committed),
    )
