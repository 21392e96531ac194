"""Configuration of `patchsieve score`; imports neither torch nor ray, so that `--help` answers at once."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import tyro

from patchsieve.pipeline.checks import at_least_one, flag
from patchsieve.pipeline.cluster.slots import HeadUse
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.part import parse_part
from patchsieve.pipeline.row_config import (
    FROZEN_TOKENS,
    IMAGE_FIELDS,
    Crop,
    Estimator,
    FrozenTokens,
    Masks,
    Metric,
    Precision,
    Removal,
    RowConfig,
    Store,
)
from patchsieve.pipeline.runs.log import LogFormat


def parse_views(text: str) -> tuple[int, int]:
    """First view and number of views of `--views`: "4" is views 0 to 3, "4:8" views 4 to 7."""
    first, colon, stop = text.partition(":")
    try:
        begin, end = (int(first), int(stop)) if colon else (0, int(first))
    except ValueError:
        raise UserError(f"--views is {text!r}, must be a count such as 4 or a range such as 4:8") from None
    if end <= begin or begin < 0:
        raise UserError(f"--views is {text!r}, must be a count from 1 on such as 4, or a range such as 4:8")
    return begin, end - begin


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Score the patches of the images in WebDataset shards into a Parquet table."""

    shards: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SHARDS")]
    """Shards: paths, globs, brace ranges {000000..000999}, directories or @list.txt, on any fsspec URL."""
    out: str
    """Output folder (any fsspec URL). Run again on it to resume."""
    teacher: str = "mae-base"
    """tiny (bundled), mae-base, mae-large, mae-huge, or path or URL of a .pth, a .safetensors or a folder."""
    output_space: Literal["auto", "pixels", "normalised"] = "auto"
    """What the teacher predicts, where its file does not tell."""
    views: str = "4"
    """Views per image: a count, or a range such as 4:8 to add to an earlier table."""
    mask_ratio: float = 0.9
    """Share of the patches that is hidden in a view."""
    removal: Removal = "decoder"
    """Leave a patch out before the decoder (cheap, as published) or before the encoder (exact)."""
    metric: Metric = "l1"
    """How the change of the reconstruction is measured."""
    estimator: Estimator = "exact"
    """Scores exactly, or from a few hidden tokens at a fraction of the cost (decoder removal, l1 and l2)."""
    frozen_tokens: FrozenTokens | Literal["auto"] = "auto"
    """With --estimator frozen: hidden tokens computed anew for each removal; auto is 30."""
    crop: Crop = "random"
    """Random resized crops, or one centre crop whose views cover all patches."""
    masks: Masks = "spread"
    """Visible patches spread apart, whose scores repeat better, or drawn uniformly, as published."""
    store: Store = "patches"
    """Pixels kept in the table: the visible patches, the whole view as JPEG, or none."""
    seed: int = 0
    """Seed of masks, crops, flips and the share of samples."""
    root: str | None = None
    """Name shards by their path below this URL, so that the corpus may move."""
    sample: float = 1.0
    """Share of the samples to score."""
    limit_shards: int | None = None
    """Score only the first N shards."""
    part: str | None = None
    """Score part I/N of the shards, such as 3/8, beside runs of the other parts on the same --out."""
    image_field: str = IMAGE_FIELDS
    """Fields that may hold a sample's image; the first one present is taken."""
    unsorted: bool = False
    """Collect the members of a sample wherever they lie in its shard, in up to 1 GiB of memory; by default they must
    lie side by side. Rows stay the same, so that with --redo-errors it mends an output."""
    gpus_per_actor: float = 1.0
    """GPUs of an actor; 0 scores on CPUs although there are GPUs."""
    cpus_per_actor: int | None = None
    """CPUs of an actor: decoders beside a GPU, or the teacher itself. Default: its share of a node."""
    max_actors: int | None = None
    """At most this many actors, asked for at once; by default as many as the cluster has room for."""
    head_node: HeadUse = "auto"
    """Whether the cluster's head takes actors; auto: only where there is no other node when the run begins."""
    batch_size: int | Literal["auto"] = "auto"
    """Views scored at once; auto measures what fits and is fastest."""
    compile: bool = True
    """On GPUs: compile the teacher when an actor starts, which takes half a minute and a C compiler; 1.4 times as fast
    from then on."""
    decode_pixels: int = 200_000_000
    """Pixels of images that an actor decodes at one moment; about 15 bytes each. One image may have more."""
    precision: Literal["auto"] | Precision = "auto"
    """Arithmetic of the teacher; auto is decided once per output by a short probe."""
    max_bad: float = 0.05
    """Exit 1 when a larger share of the samples gave no row."""
    salvage: bool = False
    """Do not count damaged archives as failures: what they gave is enough."""
    redo_errors: bool = False
    """Score shards again that have samples without a row."""
    verify_content: bool = False
    """Read every shard that is done and compare all of its bytes: finds one that was written again in place with the
    same size and time."""
    stall_timeout: float = 900.0
    """Seconds without progress after which an actor is replaced."""
    start_timeout: float = 600.0
    """Seconds without any ready actor after which the run says so and ends."""
    price_per_hour: float | None = None
    """Price of one actor's hour; the dry run turns it into a sum."""
    log_format: LogFormat = "text"
    """Lines for people, or every event as a line of JSON."""
    dry_run: bool = False
    """Print what would be done and what it would cost; writes nothing."""

    def __post_init__(self) -> None:
        # What no row can have is refused before anything is looked up; size and decoder come later.
        self.rows(size=1, precision="fp32", decoder="any")
        parse_part(self.part)
        if self.frozen_tokens != "auto" and self.estimator != "frozen":
            raise UserError(f"--frozen-tokens {self.frozen_tokens} is for --estimator frozen")
        for name in ("max_actors", "limit_shards", "batch_size", "cpus_per_actor", "decode_pixels"):
            at_least_one(flag(name), getattr(self, name))
        if not self.shards:
            raise UserError("no shards given: name a path, a glob, a brace range, a directory or @list.txt")
        if self.dry_run and self.verify_content:
            raise UserError("--verify-content reads shards, which --dry-run does not: leave one of them out")
        if not 0 <= self.max_bad <= 1:
            raise UserError(f"--max-bad is {self.max_bad}, must be a share from 0 to 1")
        if self.gpus_per_actor < 0 or (self.gpus_per_actor > 1 and self.gpus_per_actor % 1):
            raise UserError(f"--gpus-per-actor is {self.gpus_per_actor}: give a share up to 1 or a count")
        if min(self.stall_timeout, self.start_timeout) <= 0:
            raise UserError("--stall-timeout and --start-timeout must be above 0 seconds")

    @property
    def known_batch_size(self) -> int | None:
        """Views scored at once, where that is not measured."""
        return None if self.batch_size == "auto" else self.batch_size

    def rows(self, *, size: int, precision: Precision, decoder: str) -> RowConfig:
        """The settings that can change a row, given what the teacher, the probe and the decoder decide."""
        first_view, views = parse_views(self.views)
        tokens = FROZEN_TOKENS if self.frozen_tokens == "auto" else self.frozen_tokens
        return RowConfig(
            mask_ratio=self.mask_ratio,
            first_view=first_view,
            views=views,
            crop=self.crop,
            masks=self.masks,
            estimator=self.estimator,
            frozen_tokens=tokens if self.estimator == "frozen" else None,
            removal=self.removal,
            metric=self.metric,
            seed=self.seed,
            size=size,
            precision=precision,
            store=self.store,
            sample=self.sample,
            image_field=self.image_field,
            decoder=decoder,
        )
