"""What `patchsieve evaluate` tells: lines, JSON and a plot."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from patchsieve import __version__
from patchsieve.pipeline.runs.config_file import with_run_id
from patchsieve.pipeline.units import counted
from patchsieve.ranker.evaluate.measure import RANKER, TOP_SHARES, Agreement, Evaluation
from patchsieve.ranker.evaluate.reconstruction import SHARES, SPACES, ReconstructionCurve
from patchsieve.ranker.evaluate.report_parts import columns, commit_files, plain
from patchsieve.ranker.learning.agreement import Interval

REPORT_FILE = "evaluation.json"
REPORT_PLOT = "evaluation.png"
REPORT_SETTINGS = "evaluate.yaml"
REPORT_VERSION = 1

DIAGNOSTIC = "a diagnostic without a gate: scores tell what a reconstruction is sensitive to, not which patches suffice"
_HALVES = "half against half"


def write_report(
    evaluation: Evaluation, folder: str, *, settings: bytes, plot: bytes | None, run_id: str
) -> None:
    """Write the settings (YAML), the plot if there is one, and the JSON last, in a folder (path or URL)."""
    report = to_json(evaluation, run_id=run_id).encode()
    files = {REPORT_SETTINGS: with_run_id(settings, run_id), REPORT_PLOT: plot, REPORT_FILE: report}
    commit_files(folder, files, run_id=run_id)


def to_json(evaluation: Evaluation, *, run_id: str) -> str:
    """Everything that was measured; an interval is {value, low, high, images}, what is no number null."""
    dense, ranker = evaluation.dense, evaluation.ranker
    curves = evaluation.reconstruction
    about = {
        "format": "patchsieve evaluation",
        "schema_version": REPORT_VERSION,
        "patchsieve": __version__,
        "run_id": run_id,
        "ranker": {
            "name": ranker.name,
            "digest": ranker.digest,
            "config": dataclasses.asdict(ranker.config),
            "tables": list(ranker.tables),
        },
        "teacher": dict(dense.teacher),
        "images": len(dense.keys),
        "dense": dataclasses.asdict(dense.how),
        "rho": evaluation.rho,
        "ceiling": evaluation.ceiling,
        "top_shares": TOP_SHARES,
        "halves": _agreement_json(evaluation.halves),
        "agreement": {name: _agreement_json(found) for name, found in evaluation.agreement.items()},
        "reconstruction": None
        if curves is None
        else {
            "note": DIAGNOSTIC,
            "shares": SHARES,
            "selectors": {name: dataclasses.asdict(curve) for name, curve in curves.items()},
        },
        "notes": evaluation.notes,
    }
    return json.dumps(plain(about), indent=2, allow_nan=False) + "\n"


def _agreement_json(agreement: Agreement) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(agreement) if field.name != "per_image"]
    return {name: getattr(agreement, name) for name in names}


def report_lines(evaluation: Evaluation) -> list[str]:
    """The tables to print."""
    dense, how = evaluation.dense, evaluation.dense.how
    lines = [
        f"ranker     {evaluation.ranker.name} ({evaluation.ranker.config.model}), teacher {dense.teacher['name']}, "
        f"{counted(len(dense.keys), 'image')}",
        f"reference  {how.partitions} partitions ({how.views} views), {how.masks} masks, aggregate {how.aggregate}, "
        f"mask ratio {how.mask_ratio:g}, removal {how.removal}, metric {how.metric}",
        f"           reliability rho {_interval(evaluation.rho)}, ceiling sqrt(rho) {_interval(evaluation.ceiling)}",
        *_choice_lines(evaluation),
        "",
        "agreement with the teacher's dense scores, means over images (95 % intervals)",
        *_agreement_table(evaluation),
    ]
    if evaluation.reconstruction is not None:
        lines += ["", f"the teacher's error when the highest patches are kept; {DIAGNOSTIC}"]
        lines += _reconstruction_table(evaluation.reconstruction)
    return [*lines, *(["", *(f"note       {note}" for note in evaluation.notes)] if evaluation.notes else [])]


def _choice_lines(evaluation: Evaluation) -> list[str]:
    how = evaluation.dense.how
    if how.choice is None:
        return []
    return [
        f"           chosen on {how.choice_images} images by how halves agree:",
        *(
            f"           {masks:8} {', '.join(f'{way} {value:.3f}' for way, value in row.items())}"
            for masks, row in how.choice.table.items()
        ),
    ]


def _agreement_table(evaluation: Evaluation) -> list[str]:
    shares = [f"top {share:.0%}" for share in TOP_SHARES]
    head = ["", "Spearman", "of ceiling", "tau", *shares, "ranker ahead by"]
    ordered = sorted(
        evaluation.agreement.items(), key=lambda item: (item[0] != RANKER, -item[1].spearman.value)
    )
    rows = [[name, *_agreement_cells(found)] for name, found in ordered]
    # One half repeats half the views; the whole is more reliable, which is what rho tells.
    halves = _agreement_cells(evaluation.halves)
    return columns([head, *rows, [_HALVES, halves[0], "", *halves[2:]]])


def _agreement_cells(found: Agreement) -> list[str]:
    ahead = "" if found.ranker_ahead is None else _interval(found.ranker_ahead, signed=True)
    tops = [f"{overlap.value:.2f}" for overlap in found.overlap]
    return [_interval(found.spearman), _interval(found.of_ceiling), f"{found.tau.value:.3f}", *tops, ahead]


def _reconstruction_table(curves: Mapping[str, ReconstructionCurve]) -> list[str]:
    head = [
        "kept",
        *(f"{space} {share:.0%}" for space in SPACES for share in SHARES),
        "ranker less this at 25%",
    ]
    rows = []
    for name, curve in sorted(
        curves.items(), key=lambda item: (item[0] != RANKER, item[1].errors["pixel"][1].value)
    ):
        cells = [f"{interval.value:.4f}" for space in SPACES for interval in curve.errors[space]]
        less = curve.versus_ranker.get("pixel")
        rows.append([name, *cells, _interval(less[1], signed=True, digits=4) if less else ""])
    return columns([head, *rows])


def _interval(interval: Interval, *, signed: bool = False, digits: int = 3) -> str:
    form = f"{'+' if signed else ''}.{digits}f"
    if not math.isfinite(interval.value):
        return "-"
    return f"{interval.value:{form}} ({interval.low:{form}} to {interval.high:{form}})"
