"""What a score run came to: counts, exit code, and the lines at its end."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from patchrank.pipeline.output_status import FolderStatus
from patchrank.pipeline.progress import byte_size, duration
from patchrank.pipeline.record_file import Record

if TYPE_CHECKING:  # it brings torch, which `patchrank status` can do without
    from patchrank.pipeline.shard_scoring import ShardResult

LISTED = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSummary:
    """The end of a run. `shards`, `done`, `failed`, `rows`, `samples` and `bad` cover all shards that were asked
    for, those finished by earlier runs included; the rest covers this run. Times in seconds.
    """

    run_id: str
    state: str
    shards: int
    done: int
    done_before: int
    failed: dict[str, str]
    missing: list[str]
    damaged: list[str]
    samples: int
    bad: int
    rows: int
    faults: dict[str, int]
    images: int
    views: int
    seconds: float
    waited_share: float
    table_bytes: int
    devices: list[str]
    exit_code: int

    def lines(self, out: str) -> list[str]:
        """What a user reads at the end."""
        speed = (
            f"{self.views / self.seconds:.1f} views/s" if self.views and self.seconds else "nothing scored"
        )
        before = f" ({self.done_before} by earlier runs)" if self.done_before else ""
        lines = [
            f"{self.state}: {self.done} of {self.shards} shards done{before}, {self.rows:,} rows in {out}",
            f"this run: {self.images:,} images, {self.views:,} views in {duration(self.seconds)}, {speed}, "
            f"teacher waited {self.waited_share:.0%}, {byte_size(self.table_bytes)} of tables",
        ]
        if self.bad:
            lines.append(f"samples without a row: {self.bad:,} of {self.samples:,}")
        lines += [f"  {count:>7,}  {reason}" for reason, count in list(self.faults.items())[:LISTED]]
        for what, names in (("damaged archive", self.damaged), ("missing", self.missing)):
            lines += listed(what, names)
        lines += listed("failed", [f"{name}: {reason}" for name, reason in self.failed.items()])
        return lines


def listed(what: str, names: list[str]) -> list[str]:
    """A line for each of the first 20 names, and one for the rest."""
    more = [f"{what}: ... and {len(names) - LISTED} more"] if len(names) > LISTED else []
    return [f"{what}: {name}" for name in names[:LISTED]] + more


def summarise(
    *,
    run_id: str,
    state: str,
    names: Mapping[str, str],
    before: Mapping[str, Record],
    results: Mapping[str, ShardResult],
    failures: Mapping[str, str],
    seconds: float,
    waited_share: float,
    devices: Iterable[str],
    views: int,
    max_bad: float,
    salvage: bool,
    stopped_code: int | None = None,
) -> RunSummary:
    """Put a summary together.

    `names`: shard names by id; `before`: records of shards done by earlier runs; `views`: views of an image.
    """
    committed = {key: result for key, result in results.items() if result.failed is None}
    ended = before.keys() | committed.keys() | failures.keys()
    missing = [name for key, name in names.items() if key not in ended]
    whole: dict[str, Record | ShardResult] = {**before, **committed}
    damaged = [names[key] for key, item in whole.items() if item.damaged]
    everything: list[Record | ShardResult] = [*before.values(), *results.values()]
    samples = sum(item.samples for item in everything)
    bad = sum(item.quarantined for item in everything)
    faults = Counter[str]()
    for result in results.values():
        faults.update(result.faults)
    rows = sum(item.rows for item in whole.values())
    # Not of `samples`: of those, `--sample` may have left most aside.
    too_bad = bad > max_bad * (bad + rows / views)
    incomplete = missing or failures or (damaged and not salvage) or too_bad
    code = stopped_code if stopped_code is not None else int(bool(incomplete))
    return RunSummary(
        run_id=run_id,
        state=state if stopped_code is not None else ("incomplete" if code else "complete"),
        shards=len(names),
        done=len(before) + len(committed),
        done_before=len(before),
        failed={names[key]: reason for key, reason in failures.items()},
        missing=missing,
        damaged=damaged,
        samples=samples,
        bad=bad,
        rows=rows,
        faults=dict(faults.most_common()),
        images=sum(result.images for result in committed.values()),
        views=sum(result.rows for result in committed.values()),
        seconds=seconds,
        waited_share=waited_share,
        table_bytes=sum(result.table_bytes for result in committed.values()),
        devices=sorted(set(devices)),
        exit_code=code,
    )


def status_lines(status: FolderStatus) -> list[str]:
    """What `patchrank status` prints."""
    lines = [
        f"shards   {status.done} done, {status.missing} missing, {status.failed} failed, {status.damaged} damaged",
        f"rows     {status.rows:,} of {status.samples:,} samples, {status.quarantined:,} of them without a row",
    ]
    lines += [f"error    {count:>7,}  {reason}" for reason, count in list(status.errors.items())[:LISTED]]
    lines += listed("failed  ", [f"{name}: {reason}" for name, reason in status.failures.items()])
    if status.last_run is not None:
        lines.append(f"last run {status.last_run['run_id']} {status.last_run.get('state', '')}")
    if status.owner is not None:
        lines.append(f"owner    run {status.owner.get('run_id')} on {status.owner.get('host')}")
    return lines
