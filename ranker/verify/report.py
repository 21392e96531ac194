"""What verify found."""

from __future__ import annotations

import dataclasses

from patchsieve.pipeline.runs.end import listed
from patchsieve.pipeline.units import byte_size


@dataclasses.dataclass(kw_only=True)
class Report:
    """What was found of the output `url`. `files` and `bytes` were read and are as they were written.

    By path below the output: `damaged`, why; `unverifiable`, what cannot be told. `missing`: what is gone of a shard,
    by its name. `rows` were scored again and are right, `equal` of them bit for bit. `marked`: records that were moved
    away, so that the next run makes them again. `owner`: the run that writes there now, "" for none.
    """

    url: str
    files: int = 0
    bytes: int = 0
    damaged: dict[str, str] = dataclasses.field(default_factory=dict)
    missing: dict[str, str] = dataclasses.field(default_factory=dict)
    unverifiable: dict[str, str] = dataclasses.field(default_factory=dict)
    rows: int = 0
    equal: int = 0
    marked: list[str] = dataclasses.field(default_factory=list)
    owner: str = ""

    @property
    def sound(self) -> bool:
        """Whether nothing is damaged or gone, as far as could be told."""
        return not self.damaged and not self.missing


def report_lines(report: Report) -> list[str]:
    """What `patchsieve verify` prints."""
    verdict = "sound" if report.sound else "NOT SOUND"
    lines = [
        f"{verdict}: {report.files:,} files of {byte_size(report.bytes)} are as they were written, "
        f"{len(report.damaged):,} damaged, {len(report.missing):,} missing, {len(report.unverifiable):,} unverifiable"
    ]
    if report.rows:
        lines.append(f"rows     {report.rows:,} scored again and right, {report.equal:,} of them bit for bit")
    for what in ("damaged", "missing", "unverifiable"):
        lines += listed(what, [f"{name}: {why}" for name, why in getattr(report, what).items()])
    lines += listed("marked as not done", report.marked)
    if report.owner:
        lines.append(f"owner    run {report.owner} writes here now: what it was at may be told as damaged")
    return lines
