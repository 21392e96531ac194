"""Configuration of `patchsieve sheet`; imports neither torch nor ray, so that `--help` answers at once."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import tyro

from patchsieve.pipeline.checks import at_least_one
from patchsieve.pipeline.errors import UserError

DEFAULT_ROWS = 8
MOST_ROWS = 100
"""A sheet of more has pictures that no viewer opens."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SheetConfig:
    """Draw photos with their scores and the patches that stay, as a PNG."""

    path: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]
    """A score table or output folder, a pruned dataset, or shards (with --ranker)."""
    key: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="KEY")] = None
    """Key of the one sample to draw; by default several, evenly spaced."""
    ranker: str | None = None
    """Ranker whose scores stand beside those of the table: a folder or URL, tiny (bundled), or baseline:NAME."""
    images: tuple[str, ...] = ()
    """Shards that were scored or pruned, for whole photos; by default only the patches that a table or set holds."""
    unsorted: bool = False
    """Collect the members of a sample wherever they lie in its shard, in up to 1 GiB of memory; by default they must
    lie side by side."""
    root: str | None = None
    """Name shards by their path below this URL, as they were scored."""
    keep: float | None = None
    """Share of the patches that the last column keeps: without it half of them, of a pruned set all that stay."""
    top: int | None = None
    """Draw the N images with the highest mean score, or of a pruned set those that keep most."""
    bottom: int | None = None
    """Draw the N images with the lowest mean score, or of a pruned set those that keep least."""
    out: str = "sheet.png"
    """File for the picture (any fsspec URL)."""

    def __post_init__(self) -> None:
        for name in ("top", "bottom"):
            count = getattr(self, name)
            at_least_one(f"--{name}", count)
            if count is not None and count > MOST_ROWS:
                raise UserError(f"--{name} is {count}, a sheet has at most {MOST_ROWS} rows")
        if sum(given is not None for given in (self.key, self.top, self.bottom)) > 1:
            raise UserError("KEY, --top and --bottom each say what to draw: give one of them")
        if self.keep is not None and not 0 < self.keep <= 1:
            raise UserError(f"--keep is {self.keep}, must be above 0 and at most 1")

    @property
    def rows(self) -> int:
        """Images to draw."""
        return 1 if self.key is not None else self.top or self.bottom or DEFAULT_ROWS
