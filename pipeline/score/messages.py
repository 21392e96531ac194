"""What a run's driver and its actors tell each other: the order, how far an actor is, what became of a shard."""

from __future__ import annotations

import dataclasses

from patchsieve.pipeline.cluster.places import Place
from patchsieve.pipeline.row_config import RowConfig
from patchsieve.pipeline.runs.log import LogFormat


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActorInfo:
    """Where an actor runs. `pid` means something within `process_space` only (see `machine`)."""

    place: Place
    process_space: str
    pid: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkOrder:
    """What an actor of a run is told once its rows are resolved. `actor`: its name."""

    out: str
    run_id: str
    actor: str
    rows: RowConfig
    unsorted: bool
    batch_size: int | None
    compile: bool
    decode_threads: int
    decode_pixels: int
    log_format: LogFormat


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
