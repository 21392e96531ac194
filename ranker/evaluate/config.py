"""Configuration of `patchsieve evaluate`; imports neither torch nor ray, so that `--help` answers at once."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import tyro

from patchsieve.pipeline.checks import at_least_one, flag
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.row_config import IMAGE_FIELDS, Masks, Metric, Precision, Removal


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Measure a ranker against the teacher's own scores of whole images that it was not trained on."""

    shards: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SHARDS")]
    """Shards: paths, globs, brace ranges {000000..000999}, directories or @list.txt, on any fsspec URL."""
    ranker: str
    """Folder of the ranker (path or URL)."""
    teacher: str
    """The teacher that the ranker learned from: tiny, mae-base, ... or path or URL, as for score."""
    out: str | None = None
    """Folder (any fsspec URL) for evaluation.json, evaluation.png and the settings; none prints only."""
    only_held_out: bool = False
    """Take only the images that the ranker's training held out: for the shards that it was trained on."""
    limit_images: int = 200
    """Take only the first N images; they are in memory, 150 KB each at 224 px."""
    dense: str | None = None
    """Table of `score --crop center` on these shards, with views for two partitions or more, in place of scoring."""
    mask_ratio: float | None = None
    """Share of the patches that is hidden in a view; by default that of the ranker's tables."""
    removal: Removal | None = None
    """How a patch is left out; by default as in the ranker's tables."""
    metric: Metric | None = None
    """How the change of the reconstruction is measured; by default as in the ranker's tables."""
    masks: Literal["auto"] | Masks = "auto"
    """Masks of the dense scores; auto takes those whose scores repeat best."""
    aggregate: Literal["auto", "mean", "log", "zscore", "rank"] = "auto"
    """From many masks to one score per patch; auto takes the way that repeats best."""
    reliability: float = 0.8
    """Partitions are added until the dense scores are this reliable."""
    max_partitions: int = 20
    """At most this many partitions of the grid, 11 views each at a mask ratio of 0.9."""
    reconstruct: bool = True
    """Also measure the teacher's error when the highest patches of each kind are kept."""
    plot: bool = True
    """Draw evaluation.png in OUT."""
    output_space: Literal["auto", "pixels", "normalised"] = "auto"
    """What the teacher predicts, where its file does not tell."""
    image_field: str = IMAGE_FIELDS
    """Fields that may hold a sample's image; the first one present is taken."""
    unsorted: bool = False
    """Collect the members of a sample wherever they lie in its shard, in up to 1 GiB of memory; by default they must
    lie side by side."""
    batch_size: int | None = None
    """Views that the teacher scores at once; measured by default."""
    precision: Literal["auto"] | Precision = "auto"
    """Arithmetic of the teacher; auto is decided by a short probe."""
    seed: int = 1
    """Seed of masks, random selection and intervals; other than that of the tables, whose default is 0."""
    json: bool = False
    """Print JSON instead of lines."""

    def __post_init__(self) -> None:
        if not self.shards:
            raise UserError("no shards given: name a path, a glob, a brace range, a directory or @list.txt")
        if self.limit_images < 2:
            raise UserError(
                f"--limit-images is {self.limit_images}, must be at least 2: intervals need several"
            )
        if self.max_partitions < 2 or self.max_partitions % 2:
            raise UserError(
                f"--max-partitions is {self.max_partitions}, must be an even number: halves are compared"
            )
        if not 0 < self.reliability < 1:
            raise UserError(f"--reliability is {self.reliability}, must lie between 0 and 1")
        if self.mask_ratio is not None and not 0 < self.mask_ratio < 1:
            raise UserError(f"--mask-ratio is {self.mask_ratio}, must lie between 0 and 1")
        at_least_one("--batch-size", self.batch_size)
        given = [name for name in ("mask_ratio", "removal", "metric") if getattr(self, name) is not None]
        if self.dense is not None and (given or self.masks != "auto"):
            names = ", ".join(map(flag, given or ["masks"]))
            raise UserError(f"{names}: the table of --dense tells that already")
