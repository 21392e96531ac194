"""How far a training is between measurements: a small file in OUT, written by its first worker, read by its driver."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from patchsieve.pipeline import storage
from patchsieve.pipeline.shown import clock, say
from patchsieve.pipeline.units import duration

STEP_FILE = "progress.json"
TOLD_EVERY_S = 10.0
"""Seconds between what a training tells of its steps."""


def write_step(out: str, *, step: int, steps: int, loss: float, step_s: float, run_id: str) -> None:
    """Leave in OUT how far the training is, for `follow`; `loss`: mean since the last measurement, `step_s` seconds."""
    about = {"step": step, "steps": steps, "loss": loss, "step_s": step_s}
    storage.commit_bytes(json.dumps(about).encode(), storage.join(out, STEP_FILE), run_id=run_id)


def step_line(about: Mapping[str, Any]) -> str:
    """Where the training is between measurements, as the console shows it."""
    left = duration((about["steps"] - about["step"]) * about["step_s"])
    return f"{clock()}  step {about['step']:,} of {about['steps']:,}  loss {about['loss']:.4f}  about {left} left"


def print_step(about: Mapping[str, Any]) -> None:
    """Show a step on the console."""
    say(step_line(about))
