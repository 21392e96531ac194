"""The journal of `make faults`, to which every run adds lines: what was killed, when, and what came of it.

`{"kill": ...}` is one process, or all of a job's, killed in a round: `job`, `fault`, `commits` (records or checkpoints
that were there), `round`. `{"round": ...}` is the verdict over one output after its kills and a last run that nothing
disturbed: `differences` from an undisturbed run, or `error`. A round without a verdict was broken off, and its kills do
not count.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

JOURNAL = Path(__file__).resolve().parents[2] / "docs" / "faults.jsonl"
Line = dict[str, Any]


def read_journal(path: Path) -> list[Line]:
    """All whole lines; the last one may have been killed while it was written."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def add(path: Path, line: Line) -> None:
    """Append a line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, sort_keys=True) + "\n")


def instant(kill: Line) -> str:
    """Of a kill: before the first commit or checkpoint, or after it."""
    return "after a commit" if kill["commits"] else "before the first commit"


def judged(lines: Iterable[Line]) -> tuple[list[Line], list[Line]]:
    """Kills of rounds with a verdict, and the verdicts."""
    verdicts = [line for line in lines if line["what"] == "verdict"]
    rounds = {line["round"] for line in verdicts}
    return [line for line in lines if line["what"] == "kill" and line["round"] in rounds], verdicts


def table(lines: Sequence[Line]) -> list[str]:
    """The counts, as a table of a page."""
    kills, verdicts = judged(lines)
    jobs = ("score", "train", "prune")
    counts = Counter((kill["fault"], instant(kill), kill["job"]) for kill in kills)
    rows = ["| killed | when | score | train | prune | all |", "|---|---|---|---|---|---|"]
    for fault, when in sorted({(fault, when) for fault, when, _ in counts}):
        each = [counts[fault, when, job] for job in jobs]
        rows.append(f"| {fault} | {when} | {' | '.join(map(str, each))} | {sum(each)} |")
    each = [sum(kill["job"] == job for kill in kills) for job in jobs]
    rows.append(f"| all | | {' | '.join(map(str, each))} | {sum(each)} |")
    bad = [line for line in verdicts if line.get("error") or line.get("differences")]
    late = sum(bool(kill["commits"]) for kill in kills)
    rows += [
        "",
        f"{len(kills)} kills in {len(verdicts)} outputs, {late} after a first commit or checkpoint; ",
    ]
    rows[-1] += f"{len(bad)} outputs were not what an undisturbed run leaves."
    return rows + [
        f"- {line['job']} {line['round']}: {line.get('error') or line['differences']}" for line in bad
    ]


if __name__ == "__main__":
    print(*table(read_journal(Path(sys.argv[1]) if len(sys.argv) > 1 else JOURNAL)), sep="\n")
