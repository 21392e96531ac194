"""Configuration of `patchsieve prune`; imports neither torch nor ray, so that `--help` answers at once."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Literal

import tyro

from patchsieve.pipeline.checks import at_least_one, flag
from patchsieve.pipeline.cluster.slots import HeadUse
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.part import parse_part
from patchsieve.pipeline.row_config import IMAGE_FIELDS, Precision
from patchsieve.pipeline.runs.log import LogFormat

PruneFormat = Literal["packed", "masked", "index"]
PruneCrop = Literal["center", "squash"]
SelectionName = Literal["topk", "window", "region", "nucleus", "cluster", "random"]
BUDGETED: tuple[SelectionName, ...] = ("topk", "window", "region")
"""What `--target-ratio` can tell the count of patches of each image."""

# Options that only some settings read: what is selected, and what decides how many (count, mass, budget). Given with
# others they would do nothing.
_READ_BY = {
    "keep": ("count",),
    "mass": ("mass",),
    "floor": ("mass", "budget"),
    "ceiling": ("mass", "budget"),
    "temperature": ("mass", "budget"),
    "windows": ("window",),
    "compactness": ("region",),
    "cluster_rule": ("cluster",),
}
DEFAULT_KEEP, DEFAULT_MASS, DEFAULT_QUALITY = 0.5, 0.9, 90


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """Write smaller shards: of every image, only the patches that a ranker puts first."""

    shards: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SHARDS")]
    """Shards: paths, globs, brace ranges {000000..000999}, directories or @list.txt, on any fsspec URL."""
    ranker: str
    """Folder or URL of a ranker, tiny (bundled), or baseline:NAME, where NAME is random, grid, variance, gradient,
    edge, centre, position, ridge, attention, cluster or leverage."""
    out: str
    """Output folder (any fsspec URL). Run again on it to resume."""
    fits: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """Ranker whose stored fits baseline:position and baseline:ridge take."""
    teacher: str | None = None
    """Teacher of baseline:attention and baseline:leverage; with --dry-run, also the one whose error is told when it
    rebuilds the images."""
    select: SelectionName = "topk"
    """The highest scores; the rectangle where scores sum highest; one connected region; the smallest set with a share
    of the softmax; for diversity, as published; at random."""
    keep: float | None = None
    """Share of the patches that stays of each image, the tokens of --background among them; by default 0.5."""
    mass: float | None = None
    """Share of the softmax that nucleus keeps of each image; by default 0.9."""
    target_ratio: float | None = None
    """Keep this share of all patches of the dataset, as many of each image as holds the most softmax mass: its highest
    scores, or with --select window or region so many patches in one piece."""
    floor: int | None = None
    """Least patches of an image that nucleus and --target-ratio keep; by default 1."""
    ceiling: int | None = None
    """Most patches of an image that nucleus and --target-ratio keep; by default all."""
    temperature: float | None = None
    """Of the softmax in nucleus and --target-ratio; by default the ranker's own. Baselines have none."""
    windows: int | None = None
    """Rectangles into which window divides what it keeps; by default 1."""
    compactness: float | None = None
    """How much region prefers enclosed patches to high scores, in mean deviations of the scores; by default 4."""
    cluster_rule: Literal["ours", "published"] | None = None
    """Centres added for clusters without a kept patch (ours, the default), or whose centre is not kept."""
    seed: int | None = None
    """Seed of --select random and of --ranker baseline:random; by default 0."""
    keep_images: float | None = None
    """Experimental. Keep this share of the images, those with the highest teacher's scores in --table; the others go
    with their whole sample. Images without a score stay."""
    min_score: float | None = None
    """Experimental. As --keep-images, but keep the images whose mean score in --table is at least this."""
    table: tuple[str, ...] = ()
    """Score tables of the shards, for --keep-images and --min-score: folders of patchsieve score, or .parquet."""
    format: PruneFormat = "packed"
    """A mosaic of the kept patches; an image with the dropped ones flattened; or the index alone."""
    codec: Literal["jpeg", "webp", "png"] = "jpeg"
    """How images are written; png, and webp of quality 100, keep pixels exactly."""
    quality: int | None = None
    """Quality of jpeg and webp, 1 to 100; by default 90."""
    size: int | None = None
    """Side of the written crop in pixels, a multiple of the ranker's; by default the ranker's."""
    background: int | None = None
    """Side in pixels of a thumbnail of the whole crop that stays beside the patches, a multiple of the ranker's patch;
    masked images show it where patches are dropped."""
    crop: PruneCrop = "center"
    """The central square, or the whole image squashed into a square."""
    drop_bad: bool = False
    """Leave out samples that cannot be pruned; by default they are copied as they are."""
    salvage: bool = False
    """Prune what a damaged archive gives; by default its shard fails."""
    verify_content: bool = False
    """Read every shard that is done and compare all of its bytes: finds one that was written again in place with the
    same size and time."""
    root: str | None = None
    """Name shards, and their outputs, by their path below this URL."""
    limit_shards: int | None = None
    """Prune only the first N shards."""
    part: str | None = None
    """Prune part I/N of the shards, such as 3/8, beside runs of the other parts on the same --out."""
    image_field: str = IMAGE_FIELDS
    """Fields that may hold a sample's image; the first one present is taken."""
    unsorted: bool = False
    """Collect the members of a sample wherever they lie in its shard, in up to 1 GiB of memory; by default they must
    lie side by side."""
    gpus_per_actor: float = 1.0
    """GPUs of an actor; 0 ranks on CPUs although there are GPUs."""
    cpus_per_actor: int | None = None
    """CPUs of an actor, which decode, encode and, without a GPU, rank. Default: its share of a node."""
    max_actors: int | None = None
    """At most this many actors; by default as many as the cluster has room for."""
    head_node: HeadUse = "auto"
    """Whether the cluster's head takes actors; auto: only where there is no other node when the run begins."""
    start_timeout: float = 600.0
    """Seconds without a place for any actor after which the run says so and ends; others' work is waited for."""
    batch_size: int | Literal["auto"] = "auto"
    """Images ranked at once; auto measures which number is the fastest."""
    decode_pixels: int = 200_000_000
    """Pixels of images that an actor decodes at one moment; about 15 bytes each. One image may have more."""
    precision: Literal["auto"] | Precision = "auto"
    """Arithmetic of the ranker; auto is decided once per output by a short probe."""
    max_bad: float = 0.05
    """Exit 1 when a larger share of the samples could not be pruned."""
    stall_timeout: float = 900.0
    """Seconds without progress after which a worker ends itself, and its shard is tried again."""
    log_format: LogFormat = "text"
    """Lines for people, or every event as a line of JSON."""
    dry_run: bool = False
    """Print what a sample of the images would become; writes no shards."""
    sweep: str | None = None
    """With --dry-run: ratios such as 0.25,0.5,0.75 to try in place of --keep, --mass or --target-ratio."""
    sheet: str | None = None
    """File (PNG) for a picture of some photos, their scores and the patches that stay; with --dry-run before the run,
    else after it."""

    def __post_init__(self) -> None:
        for name in (
            *("limit_shards", "cpus_per_actor", "max_actors", "batch_size", "decode_pixels"),
            *("size", "windows", "background"),
        ):
            at_least_one(flag(name), getattr(self, name))
        if not self.shards:
            raise UserError("no shards given: name a path, a glob, a brace range, a directory or @list.txt")
        if parse_part(self.part) is not None:
            whole = ("target_ratio", "keep_images", "min_score")
            given = next((name for name in whole if getattr(self, name) is not None), None)
            if given is not None:
                raise UserError(
                    f"{flag(given)} plans over all shards, and --part has only its own: leave one out"
                )
        if self.dry_run and self.verify_content:
            raise UserError("--verify-content reads shards, which --dry-run does not: leave one of them out")
        if not 0 <= self.max_bad <= 1:
            raise UserError(f"--max-bad is {self.max_bad}, must be a share from 0 to 1")
        for name in ("stall_timeout", "start_timeout"):
            if not getattr(self, name) > 0:
                raise UserError(f"{flag(name)} is {getattr(self, name)}, must be above 0 seconds")
        if self.gpus_per_actor < 0 or (self.gpus_per_actor > 1 and self.gpus_per_actor % 1):
            raise UserError(f"--gpus-per-actor is {self.gpus_per_actor}: give a share up to 1 or a count")
        if not self.dry_run and self.sweep is not None:
            raise UserError("--sweep is for --dry-run: add it, or leave it out")
        if self.sweep_ratios:
            replaced = next((name for name in ("keep", "mass") if getattr(self, name) is not None), None)
            if replaced:
                raise UserError(f"--sweep tries ratios in place of --{replaced}: leave one of them out")
        self._check_selection()
        self._check_images()
        self._check_writing()

    @property
    def amount(self) -> Literal["count", "mass", "budget"]:
        """What decides how many patches of an image stay."""
        if self.target_ratio is not None:
            return "budget"
        return "mass" if self.select == "nucleus" else "count"

    @property
    def sweep_ratios(self) -> list[float]:
        """The ratios of `--sweep`, none without it; UserError for what is no ratio."""
        try:
            ratios = [float(part) for part in self.sweep.split(",")] if self.sweep is not None else []
        except ValueError:
            raise UserError(f"--sweep is {self.sweep!r}, must be ratios such as 0.25,0.5,0.75") from None
        if not all(0 < ratio <= 1 for ratio in ratios):
            raise UserError(f"--sweep is {self.sweep}, its ratios must be above 0 and at most 1")
        return ratios

    def _check_selection(self) -> None:
        if self.target_ratio is not None and self.select not in BUDGETED:
            raise UserError(
                f"--target-ratio decides how many patches stay, which {', '.join(BUDGETED)} can be told: "
                f"leave out --select {self.select}"
            )
        for name, readers in _READ_BY.items():
            if getattr(self, name) is not None and not {self.select, self.amount} & set(readers):
                budgeted = name == "keep" and self.amount == "budget"
                said = "--target-ratio" if budgeted else f"--select {self.select}"
                raise UserError(f"{flag(name)} does nothing with {said}: leave it out")
        if self.seed is not None and "random" not in (self.select, self.ranker.removeprefix("baseline:")):
            raise UserError("--seed is for --select random and baseline:random: leave it out")
        for name in ("keep", "mass", "target_ratio", "keep_images"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise UserError(f"{flag(name)} is {value}, must be above 0 and at most 1")

    def _check_images(self) -> None:
        given = next((name for name in ("keep_images", "min_score") if getattr(self, name) is not None), None)
        if given is None:
            if self.table:
                raise UserError(
                    "--table is for --keep-images and --min-score: add one of them, or leave it out"
                )
            return
        if not self.table:
            raise UserError(
                f"{flag(given)} needs the images' scores: name tables of patchsieve score with --table"
            )
        if self.keep_images is not None and self.min_score is not None:
            raise UserError("--keep-images and --min-score both say which images stay: leave one of them out")
        if self.min_score is not None and not math.isfinite(self.min_score):
            raise UserError(f"--min-score is {self.min_score}, must be a number")

    def _check_writing(self) -> None:
        written = self.format != "index"
        if not written and (self.codec != "jpeg" or self.quality is not None or self.drop_bad or self.size):
            raise UserError(
                "--format index writes no images: leave out --codec, --quality, --size and --drop-bad"
            )
        if self.quality is not None and self.codec == "png":
            raise UserError("--quality does nothing with --codec png, which is exact: leave it out")
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise UserError(f"--quality is {self.quality}, must be from 1 to 100")
