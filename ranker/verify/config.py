"""Settings of `patchsieve verify`."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import tyro

from patchsieve.pipeline.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Read an output whole and hold it against what was recorded of it; exits 1 where something is damaged or gone."""

    out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """Output folder of score, prune or train (any fsspec URL)."""
    sample: float = 0.0
    """Share of the rows of score tables to score again from stored pixels, one of each table at least; 0: none."""
    teacher: str | None = None
    """Where the teacher lies, for --sample, if it is not where the run found it."""
    fix: bool = False
    """Have the next run make again what is damaged: its records are moved to OUT/damaged/."""
    json: bool = False
    """Print JSON instead of lines."""

    def __post_init__(self) -> None:
        if not 0 <= self.sample <= 1:
            raise UserError(f"--sample is {self.sample}, must be a share from 0 to 1")
        if self.teacher is not None and not self.sample:
            raise UserError("--teacher is for scoring rows again: give --sample too")
