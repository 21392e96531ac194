"""What a run's driver and its actors tell each other before the first shard."""

from __future__ import annotations

import dataclasses

from patchsieve.pipeline.config import RowConfig
from patchsieve.pipeline.run_log import LogFormat


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActorInfo:
    """Where an actor runs. `pid` means something within `process_space` only (see `machine`)."""

    node_id: str
    host: str
    process_space: str
    pid: int
    device: str
    device_ids: tuple[str, ...]
    threads: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkOrder:
    """What an actor of a run is told once its rows are resolved. `actor`: its name."""

    out: str
    run_id: str
    actor: str
    rows: RowConfig
    batch_size: int | None
    decode_threads: int
    log_format: LogFormat
