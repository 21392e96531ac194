"""What a prune run came to: counts, exit code, and the lines at its end."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping

from patchrank.pipeline.progress import byte_size, duration
from patchrank.pipeline.record_file import Record
from patchrank.pipeline.run_summary import LISTED, listed
from patchrank.ranker.prune import PruneResult


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruneSummary:
    """The end of a run. `shards`, `done`, `failed`, `samples` and `bad` cover all shards that were asked for, those
    finished by earlier runs included; the rest covers this run. Times in seconds.
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
    faults: dict[str, int]
    images: int
    kept: int
    patches: int
    shard_bytes: int
    tar_bytes: int
    image_bytes_before: int
    image_bytes_after: int
    seconds: float
    waited_share: float
    devices: list[str]
    exit_code: int

    def lines(self, out: str) -> list[str]:
        """What a user reads at the end."""
        before = f" ({self.done_before} by earlier runs)" if self.done_before else ""
        lines = [f"{self.state}: {self.done} of {self.shards} shards done{before}, in {out}"]
        if self.images:
            lines.append(
                f"this run: {self.images:,} images in {duration(self.seconds)}, "
                f"{self.images / self.seconds:.1f} images/s, ranker waited {self.waited_share:.0%}"
            )
            lines.append(f"patches: {self.kept:,} of {self.patches:,} kept, {self.kept / self.patches:.1%}")
        else:
            lines.append(f"this run: no image in {duration(self.seconds)}")
        if self.image_bytes_after:
            share = self.image_bytes_after / self.image_bytes_before
            lines.append(
                f"images: {byte_size(self.image_bytes_before)} -> {byte_size(self.image_bytes_after)}, {share:.1%}; "
                f"shards: {byte_size(self.shard_bytes)} -> {byte_size(self.tar_bytes)}"
            )
        if self.bad:
            lines.append(f"samples not pruned: {self.bad:,} of {self.samples:,}")
        lines += [f"  {count:>7,}  {reason}" for reason, count in list(self.faults.items())[:LISTED]]
        lines += listed("damaged archive", self.damaged) + listed("missing", self.missing)
        return lines + listed("failed", [f"{name}: {reason}" for name, reason in self.failed.items()])


def summarise(
    *,
    run_id: str,
    state: str,
    names: Mapping[str, str],
    before: Mapping[str, Record],
    results: Mapping[str, PruneResult],
    failures: Mapping[str, str],
    seconds: float,
    devices: Iterable[str],
    max_bad: float,
    salvage: bool,
    stopped_code: int | None = None,
) -> PruneSummary:
    """Put a summary together. `names`: shard names by id; `before`: records of shards done by earlier runs."""
    committed = {key: result for key, result in results.items() if result.failed is None}
    ended = before.keys() | committed.keys() | failures.keys()
    missing = [name for key, name in names.items() if key not in ended]
    whole: dict[str, Record | PruneResult] = {**before, **committed}
    damaged = [names[key] for key, item in whole.items() if item.damaged]
    everything: list[Record | PruneResult] = [*before.values(), *results.values()]
    samples = sum(item.samples for item in everything)
    bad = sum(item.quarantined for item in everything)
    faults = Counter[str]()
    for result in results.values():
        faults.update(result.faults)
    incomplete = missing or failures or (damaged and not salvage) or bad > max_bad * samples
    code = stopped_code if stopped_code is not None else int(bool(incomplete))
    busy = sum(result.seconds for result in results.values())
    return PruneSummary(
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
        faults=dict(faults.most_common()),
        images=sum(result.images for result in committed.values()),
        kept=sum(result.kept for result in committed.values()),
        patches=sum(result.patches for result in committed.values()),
        shard_bytes=sum(result.shard_bytes for result in committed.values()),
        tar_bytes=sum(result.tar_bytes for result in committed.values()),
        image_bytes_before=sum(result.image_bytes_before for result in committed.values()),
        image_bytes_after=sum(result.image_bytes_after for result in committed.values()),
        seconds=seconds,
        waited_share=sum(result.waited_s for result in results.values()) / busy if busy else 0.0,
        devices=sorted(set(devices)),
        exit_code=code,
    )
