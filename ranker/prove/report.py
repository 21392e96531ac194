"""What `patchsieve prove` tells: lines, JSON, and the files in OUT."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from patchsieve import __version__
from patchsieve.pipeline.runs.config_file import with_run_id
from patchsieve.ranker.evaluate.report_parts import columns, commit_files, plain
from patchsieve.ranker.learning.agreement import Interval
from patchsieve.ranker.prove.arms import Axis
from patchsieve.ranker.prove.intervals import Groups, interval
from patchsieve.ranker.prove.measure import REGIMES, ArmResult
from patchsieve.ranker.prove.verdict import HEADLINE, Comparison, Verdict

REPORT_FILE, REPORT_PLOT, REPORT_SETTINGS = "prove.json", "prove.png", "prove.yaml"
REPORT_VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Proof:
    """Everything that was measured. `arms` begin with that of whole images.

    `about`: what was asked and read; `choice`: which selector was tested, why and since when; `validation`: accuracy of
    every fitted arm on the validation split; `groups`: what the test images share, which intervals draw anew.
    """

    about: Mapping[str, Any]
    choice: Mapping[str, Any]
    validation: Mapping[str, float]
    arms: Sequence[ArmResult]
    comparisons: Sequence[Comparison]
    refused: Sequence[str]
    verdicts: Sequence[Verdict]
    notes: Sequence[str]
    groups: Groups
    tolerance: float
    seed: int

    def ahead(self, arm: ArmResult, axis: Axis) -> Interval | None:
        """How far the selector is ahead of a control in the regime of its cost, None where they are not compared."""
        for one in self.comparisons:
            if (one.control, one.keep, one.axis, one.regime) == (
                arm.arm.name,
                arm.arm.keep,
                axis,
                HEADLINE[axis],
            ):
                return one.ahead
        return None

    def interval(self, arm: ArmResult, regime: str) -> Interval | None:
        """An arm's accuracy and its interval over test images and seeds; None for a regime that it does not have."""
        return self._intervals.get((arm.arm.id, regime))

    @functools.cached_property
    def _intervals(self) -> dict[tuple[str, str], Interval]:
        return {
            (arm.arm.id, regime): interval(right_SN, seed=self.seed, groups=self.groups)
            for arm in self.arms
            for regime, right_SN in arm.right.items()
        }


def write_report(proof: Proof, folder: str, *, settings: bytes, plot: bytes | None, run_id: str) -> None:
    """Write the settings (YAML), the plot if there is one, and the JSON last, in a folder (path or URL)."""
    report = to_json(proof, run_id=run_id).encode()
    files = {REPORT_SETTINGS: with_run_id(settings, run_id), REPORT_PLOT: plot, REPORT_FILE: report}
    commit_files(folder, files, run_id=run_id)


def to_json(proof: Proof, *, run_id: str) -> str:
    """Everything that was measured; an interval is {value, low, high, images}."""
    about = {
        "format": "patchsieve proof",
        "schema_version": REPORT_VERSION,
        "patchsieve": __version__,
        "run_id": run_id,
        **proof.about,
        "choice": dict(proof.choice),
        "validation": dict(proof.validation),
        "arms": [_arm_json(proof, arm) for arm in proof.arms],
        "tolerance": proof.tolerance,
        "comparisons": [{**dataclasses.asdict(one), "outcome": one.outcome} for one in proof.comparisons],
        "refused": list(proof.refused),
        "verdicts": [dataclasses.asdict(one) for one in proof.verdicts],
        "notes": list(proof.notes),
    }
    return json.dumps(plain(about), indent=1, allow_nan=False) + "\n"


def _arm_json(proof: Proof, arm: ArmResult) -> dict[str, Any]:
    accuracy = {name: proof.interval(arm, name) for name in REGIMES if name in arm.right}
    return {
        "name": arm.arm.name,
        "role": arm.arm.role,
        "keep": arm.arm.keep,
        "equal": arm.arm.axis,
        "numbers": arm.numbers,
        "validation": arm.validation,
        "penalty": arm.penalty,
        "train_cost": dataclasses.asdict(arm.train_cost),
        "test_cost": dataclasses.asdict(arm.test_cost),
        "accuracy": {name: found for name, found in accuracy.items() if found is not None},
        "by_seed": {name: right_SN.mean(axis=1).tolist() for name, right_SN in arm.right.items()},
    }


def report_lines(proof: Proof) -> list[str]:
    """The tables to print, and the verdict last."""
    about = proof.about
    candidates = ", ".join(f"{name} {value:.3f}" for name, value in proof.choice["candidates"].items())
    dearer = _dearer(proof)
    lines = [
        f"data       {about['train_images']} train and {about['test_images']} test images, {about['classes']} classes",
        f"model      {about['protocol']} on {about['encoder']}, selections by {about['ranker']}",
        f"selector   {proof.choice['selector']}, {proof.choice['why']} ({candidates})",
        f"test       opened once, at {proof.choice['opened']}",
        *(f"intervals  over {count} of {rule}" for rule, count in about["shared"].items()),
        "",
        "accuracy by what was trained on and tested on, and how far the selector is ahead (95 %)",
        *_table(proof),
    ]
    for title, found in (("not compared", proof.refused), ("note", proof.notes)):
        if found:
            lines += ["", *(f"{title:12} {line}" for line in found)]
    if dearer:
        lines += ["", *dearer]
    headline = [one.text for one in proof.verdicts if one.regime == HEADLINE[one.axis]]
    return [*lines, "", *(f"verdict    {text}" for text in headline or ["nothing of equal cost to compare"])]


def _dearer(proof: Proof) -> list[str]:
    """Selectors whose files take no less than whole images."""
    whole = proof.arms[0].train_cost.nbytes
    return [
        f"warning    {arm.arm.title} takes {arm.train_cost.nbytes / 1000:.2f} kB of a photo, the whole photo "
        f"{whole / 1000:.2f}: it saves no bytes"
        for arm in proof.arms
        if arm.arm.role == "selector" and arm.train_cost.nbytes >= whole
    ]


def _table(proof: Proof) -> list[str]:
    head = [
        "",
        "tokens",
        "kB",
        "validation",
        "full, pruned",
        "pruned, pruned",
        "pruned, full",
        "equal",
        "selector ahead by",
    ]
    rows = [head]
    last = None
    for arm in proof.arms:
        if arm.arm.keep != last:
            rows.append([f"{arm.arm.keep:.3g} of the patches", *[""] * (len(head) - 1)])
            last = arm.arm.keep
        ahead = None if arm.arm.axis is None else proof.ahead(arm, arm.arm.axis)
        accuracies = [arm.accuracy(regime) for regime in REGIMES]
        rows.append(
            [
                f"  {arm.arm.name}" if arm.arm.keep else arm.arm.name,
                f"{arm.train_cost.tokens:.1f}",
                f"{arm.train_cost.nbytes / 1000:.2f}",
                f"{arm.validation:.3f}",
                *("-" if value is None else f"{value:.3f}" for value in accuracies),
                arm.arm.axis or "",
                "" if ahead is None else f"{ahead.value:+.3f} ({ahead.low:+.3f} to {ahead.high:+.3f})",
            ]
        )
    return columns(rows)
