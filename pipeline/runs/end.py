"""What a run over shards came to, whatever it did with them: counts, exit code, and the lines at its end."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Protocol

from patchsieve.pipeline.output.records import Record
from patchsieve.pipeline.units import counted

LISTED = 20


class Outcome(Protocol):
    """What a worker tells of any shard; `failed`: why it gave no output, None where it did."""

    @property
    def samples(self) -> int: ...
    @property
    def quarantined(self) -> int: ...
    @property
    def faults(self) -> dict[str, int]: ...
    @property
    def damaged(self) -> bool: ...
    @property
    def failed(self) -> str | None: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunEnd:
    """The end of any run. `shards`, `done`, `failed`, `samples` and `bad` cover all shards that were asked for, those
    finished by earlier runs included; `faults`, `seconds`, `devices` and `taken_out` cover this run: `taken_out` are
    devices that failed again and again, and how.
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
    seconds: float
    devices: list[str]
    taken_out: dict[str, str]
    exit_code: int

    def first_line(self) -> str:
        """How many shards are done."""
        before = f" ({self.done_before} by earlier runs)" if self.done_before else ""
        return f"{self.state}: {self.done:,} of {counted(self.shards, 'shard')} done{before}"

    def fault_lines(self, what: str) -> list[str]:
        """What went wrong; `what` the bad samples are."""
        lines = [f"{what}: {self.bad:,} of {self.samples:,}"] if self.bad else []
        lines += [f"  {count:>7,}  {reason}" for reason, count in list(self.faults.items())[:LISTED]]
        lines += listed("damaged archive", self.damaged) + listed("missing", self.missing)
        lines += listed("taken out", [f"{name}: {fault}" for name, fault in self.taken_out.items()])
        return lines + listed("failed", [f"{name}: {reason}" for name, reason in self.failed.items()])


def listed(what: str, names: list[str]) -> list[str]:
    """A line for each of the first 20 names, and one for the rest."""
    more = [f"{what}: ... and {len(names) - LISTED} more"] if len(names) > LISTED else []
    return [f"{what}: {name}" for name in names[:LISTED]] + more


def end_of_run(
    *,
    run_id: str,
    state: str,
    names: Mapping[str, str],
    before: Mapping[str, Record],
    results: Mapping[str, Outcome],
    failures: Mapping[str, str],
    seconds: float,
    devices: Iterable[str],
    taken_out: Mapping[str, str],
    good: float,
    max_bad: float,
    salvage: bool,
    stopped_code: int | None = None,
) -> RunEnd:
    """Count what became of the shards.

    `names`: shard names by id; `before`: records of shards done by earlier runs; `good`: samples of all shards that are
    not bad; `max_bad`: the largest share that bad ones may have of both.
    """
    committed = {key: result for key, result in results.items() if result.failed is None}
    ended = before.keys() | committed.keys() | failures.keys()
    missing = [name for key, name in names.items() if key not in ended]
    whole: dict[str, Record | Outcome] = {**before, **committed}
    damaged = [names[key] for key, item in whole.items() if item.damaged]
    everything: list[Record | Outcome] = [*before.values(), *results.values()]
    bad = sum(item.quarantined for item in everything)
    faults = Counter[str]()
    for result in results.values():
        faults.update(result.faults)
    incomplete = missing or failures or (damaged and not salvage) or bad > max_bad * (bad + good)
    code = stopped_code if stopped_code is not None else int(bool(incomplete))
    return RunEnd(
        run_id=run_id,
        state=state if stopped_code is not None else ("incomplete" if code else "complete"),
        shards=len(names),
        done=len(before) + len(committed),
        done_before=len(before),
        failed={names[key]: reason for key, reason in failures.items()},
        missing=missing,
        damaged=damaged,
        samples=sum(item.samples for item in everything),
        bad=bad,
        faults=dict(faults.most_common()),
        seconds=seconds,
        devices=sorted(set(devices)),
        taken_out=dict(taken_out),
        exit_code=code,
    )
