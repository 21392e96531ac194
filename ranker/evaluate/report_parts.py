"""What reports have in common: tables of text, values that JSON can hold, files in a folder."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from patchsieve.pipeline.storage import absolute_url, commit_bytes, join
from patchsieve.ranker.learning.agreement import Interval


def commit_files(folder: str, files: Mapping[str, bytes | None], *, run_id: str) -> None:
    """Write those of the files that there are, by name and in this order, in a folder (path or URL)."""
    folder = absolute_url(folder)
    for name, content in files.items():
        if content is not None:
            commit_bytes(content, join(folder, name), run_id=run_id)


def plain(value: Any) -> Any:
    """What JSON can hold: intervals as objects, numbers that are none as null."""
    if isinstance(value, Interval):
        value = dataclasses.asdict(value)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of equal length as lines, with columns as wide as they need; the first one to the left."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return ["  " + "  ".join(_aligned(row, widths)).rstrip() for row in rows]


def _aligned(row: Sequence[str], widths: Sequence[int]) -> Iterable[str]:
    return (
        cell.rjust(width) if place else cell.ljust(width)
        for place, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
