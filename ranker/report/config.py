"""Configuration of `patchsieve report`; imports neither torch nor ray, so that `--help` answers at once."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import tyro

from patchsieve.pipeline.checks import at_least_one
from patchsieve.pipeline.errors import UserError

MOST_IMAGES = 2000
"""A page of more is slow in every browser."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Write one page of HTML about tables, rankers, pruned datasets and proofs: pictures, distributions, curves."""

    paths: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]
    """Outputs of score, train, evaluate, prove and prune, together; also shards, for their photos, and tiny."""
    out: str = "report.html"
    """File for the page (any fsspec URL). It holds everything that it shows."""
    limit_images: int = 200
    """Images in the gallery, evenly spread over the shards."""
    keep: float = 0.5
    """Keep ratio that the page begins with, and by which it calls images disputed or borderline."""
    unsorted: bool = False
    """Collect the members of a sample wherever they lie in its shard, in up to 1 GiB of memory; by default they must
    lie side by side."""
    root: str | None = None
    """Name shards by their path below this URL, as they were scored."""

    def __post_init__(self) -> None:
        if not self.paths:
            raise UserError("no path given: name the output of score, train, evaluate, prove or prune")
        at_least_one("--limit-images", self.limit_images)
        if self.limit_images > MOST_IMAGES:
            raise UserError(f"--limit-images is {self.limit_images}, a page shows at most {MOST_IMAGES}")
        if not 0 < self.keep <= 1:
            raise UserError(f"--keep is {self.keep}, must be above 0 and at most 1")
