"""Configuration of `patchsieve prove`; imports neither torch nor ray, so that `--help` answers at once."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import tyro

from patchsieve.pipeline.checks import at_least_one, flag
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.row_config import IMAGE_FIELDS

Protocol = Literal["probe", "finetune"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a transformer is fine-tuned, the same for every arm: AdamW, linear warm-up, then half a cosine to 0.

    `lr`: the highest learning rate; `weight_decay`: of matrices alone; `clip`: largest norm of a gradient.
    """

    steps: int = 1000
    batch_size: int = 64
    lr: float = 3e-4
    weight_decay: float = 0.05
    clip: float = 1.0

    @property
    def warmup_steps(self) -> int:
        """Steps in which the learning rate rises: a tenth."""
        return self.steps // 10


DEFAULT_SEEDS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProveConfig:
    """Measure what a model learns from kept patches, beside random ones, smaller images and more at the same cost."""

    shards: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SHARDS")]
    """Labelled shards to train on: paths, globs, brace ranges, directories or @list.txt, on any fsspec URL."""
    test: tuple[str, ...]
    """Labelled shards to test on, read once, after the selector has been chosen on a part of the others."""
    out: str
    """Folder (any fsspec URL) for prove.json, prove.png and what a rerun goes on from."""
    label: str = "cls"
    """Field with the label, a text or a number; FIELD:KEY takes a key of a JSON field, as json:category."""
    merge: tuple[str, ...] = ()
    """Labels that count as one, with commas between them, as Faces,Faces_easy."""
    group: tuple[str, ...] = ()
    """Fields of what test images share, as json:object json:background of scenes: intervals draw each of those anew
    instead of images, crossed."""
    ranker: str = "tiny"
    """Folder or URL of the ranker whose selections are measured; tiny is bundled."""
    teacher: str = "tiny"
    """Teacher whose encoder reads the kept tokens, and whose attention is a control, as for score."""
    backbone: str | None = None
    """Take a model of timm instead: NAME with the weights that timm has, or NAME=FILE with a file's. Fine-tuning takes
    a plain ViT, such as vit_small_patch16_224."""
    protocol: Protocol = "probe"
    """probe: a linear classifier on a frozen encoder; finetune: a whole ViT learns, which takes far longer."""
    seeds: int | None = None
    """With --protocol finetune: trainings of each arm, that differ by what is drawn; 3 by default, more may be added
    to a folder later."""
    steps: int | None = None
    """With --protocol finetune: optimiser steps, as many for every arm; 1000 by default."""
    batch_size: int | None = None
    """With --protocol finetune: images of a step; 64 by default."""
    lr: float | None = None
    """With --protocol finetune: the highest learning rate; 3e-4 by default."""
    keep: str = "0.25,0.5"
    """Shares of the patches to keep, with commas between them."""
    background: int | None = None
    """Also measure every selector over a thumbnail of this side in pixels, paid from what it may keep."""
    selector: str = "auto"
    """The selector that is tested; auto takes the one that is best on the validation split."""
    controls: str = "all"
    """Controls that it is compared with, with commas between them; more may be added to a folder later."""
    validation: float = 0.2
    """Share of the train images on which the selector and the classifiers' penalties are chosen."""
    tolerance: float = 0.05
    """Only arms whose costs differ by at most this share are compared."""
    limit_train: int | None = None
    """Take only the first N labelled train images; images are in memory, 150 KB each at 224 px."""
    limit_test: int | None = None
    """Take only the first N labelled test images."""
    quality: int = 90
    """JPEG quality of the files whose bytes are counted."""
    seed: int = 0
    """Seed of the validation split, of what is random in arms, and of intervals."""
    image_field: str = IMAGE_FIELDS
    """Fields that may hold a sample's image; the first one present is taken."""
    unsorted: bool = False
    """Collect the members of a sample wherever they lie in its shard, in up to 1 GiB of memory; by default they must
    lie side by side."""
    workers: int | None = None
    """Share the arms out on Ray, to so many workers; by default all is done in this process."""
    gpus_per_worker: float | None = None
    """With --workers: GPUs of each, where the cluster has some; 1 by default, 0 takes processors."""
    plot: bool = True
    """Draw prove.png in OUT."""
    json: bool = False
    """Print JSON instead of lines."""

    def __post_init__(self) -> None:
        if not self.shards or not self.test:
            raise UserError("name shards to train on, and others to test on with --test")
        for name in ("limit_train", "limit_test", "background", "seeds", "steps", "batch_size", "workers"):
            at_least_one(flag(name), getattr(self, name))
        for name in ("seeds", "steps", "batch_size", "lr"):
            if self.protocol != "finetune" and getattr(self, name) is not None:
                raise UserError(f"{flag(name)} is for --protocol finetune")
        if self.gpus_per_worker is not None:
            if self.workers is None:
                raise UserError("--gpus-per-worker is for --workers")
            if not 0 <= self.gpus_per_worker <= 1:
                raise UserError(f"--gpus-per-worker is {self.gpus_per_worker}, must be from 0 to 1")
        if self.lr is not None and not 0 < self.lr < 1:
            raise UserError(f"--lr is {self.lr}, must lie between 0 and 1")
        for name in ("validation", "tolerance"):
            if not 0 < getattr(self, name) < 1:
                raise UserError(f"{flag(name)} is {getattr(self, name)}, must lie between 0 and 1")
        if not 1 <= self.quality <= 100:
            raise UserError(f"--quality is {self.quality}, must be from 1 to 100")
        for group in self.merge:
            if len(_parts(group)) < 2:
                raise UserError(f"--merge {group!r} names no two labels: give them as Faces,Faces_easy")
        for name, rules in (("label", (self.label,)), ("group", self.group)):
            if not all(rule.strip(":") for rule in rules):
                raise UserError(f"{flag(name)} names no field")
        _ = self.ratios

    @property
    def drawn(self) -> tuple[int | None, ...]:
        """The seed of each training of an arm; None alone where nothing is drawn."""
        if self.protocol == "probe":
            return (None,)
        return tuple(range(self.seed, self.seed + (DEFAULT_SEEDS if self.seeds is None else self.seeds)))

    @property
    def recipe(self) -> Recipe:
        """How an arm is fine-tuned."""
        asked = {name: getattr(self, name) for name in ("steps", "batch_size", "lr")}
        return Recipe(**{name: value for name, value in asked.items() if value is not None})

    @property
    def ratios(self) -> tuple[float, ...]:
        """The keep ratios, ascending; UserError for what is none."""
        try:
            ratios = sorted({float(part) for part in _parts(self.keep)})
        except ValueError:
            ratios = []
        if not ratios or not all(0 < ratio < 1 for ratio in ratios):
            raise UserError(f"--keep is {self.keep!r}, must be ratios between 0 and 1 such as 0.25,0.5")
        return tuple(ratios)

    @property
    def named_controls(self) -> tuple[str, ...] | None:
        """The controls that were asked for by name, None for all."""
        return None if self.controls == "all" else tuple(_parts(self.controls))

    @property
    def merged(self) -> dict[str, str]:
        """The label that stands for each merged one, the first of its group."""
        return {name: _parts(group)[0] for group in self.merge for name in _parts(group)}


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
