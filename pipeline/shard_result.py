"""What became of a shard, and what its actor has done so far: what a run's driver is told."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

from patchsieve.pipeline.record_file import ShardRecord
from patchsieve.pipeline.shards import Fault

MOST_REASONS = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardResult:
    """What became of a shard.

    `failed` is the reason it gave no table, None when it committed; `progress`: totals of its actor at that moment.
    """

    shard_id: str
    samples: int
    quarantined: int
    images: int
    rows: int
    faults: dict[str, int]
    damaged: bool
    failed: str | None
    seconds: float
    waited_s: float
    table_bytes: int
    progress: Progress


@dataclasses.dataclass
class Progress:
    """Running totals of an actor; `moved` counts every step, so that a watchdog sees life.

    `teacher_s`: seconds in which the teacher worked; `waited_s`: seconds in which it had nothing to do; `gpu_bytes`:
    the most GPU memory that its process has held, 0 without a GPU.
    """

    images: int = 0
    views: int = 0
    faults: int = 0
    bytes_read: int = 0
    moved: int = 0
    teacher_s: float = 0.0
    waited_s: float = 0.0
    gpu_bytes: int = 0


def count_reasons(faults: Sequence[Fault]) -> dict[str, int]:
    """Faults by stage and reason, most frequent first; beyond the first 20 they are summed up."""
    counts = Counter(f"{fault.stage}: {fault.reason}" for fault in faults).most_common()
    shown = dict(counts[:MOST_REASONS])
    if len(counts) > MOST_REASONS:
        shown["other reasons"] = sum(count for _, count in counts[MOST_REASONS:])
    return shown


def failure_reason(
    shard: ShardRecord, rows: int, faults: Sequence[Fault], what: str = "gave a row"
) -> str | None:
    """Why a shard without rows has failed; None where it may commit. `what` none of its samples did.

    No row may be right: `--sample` can leave out every sample of a small shard.
    """
    if rows or (shard.samples and not faults):
        return None
    if not faults:
        return "it holds no samples"
    reason, count = next(iter(count_reasons(faults).items()))
    return f"none of its {shard.samples} samples {what}; {count} of {len(faults)} faults are «{reason}»"
