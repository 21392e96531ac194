"""Configuration of `patchsieve pack`; imports nothing heavy, so that `--help` answers at once."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import tyro

from patchsieve.pipeline.checks import at_least_one, flag
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.row_config import IMAGE_FIELDS


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackConfig:
    """Pack a folder of photos into shards, shuffled, byte for byte; again to resume. A sub folder is a class: its
    number goes into the field cls, its name into OUT/pack.json. Photos without sub folders get no labels.
    """

    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """Folder with the photos, in it or in folders below, on any fsspec URL; linked folders are followed."""
    out: str
    """Folder for the shards, photos-000000.tar and on, on any fsspec URL."""
    classes: str | None = None
    """OUT of another packing, whose classes and numbers these photos have: of the training set, for a test set."""
    labels: bool = True
    """Write the field cls."""
    samples_per_shard: int = 1000
    """Photos in a shard; the last one has fewer."""
    image_field: str = IMAGE_FIELDS
    """Endings of the files that are taken; score and prune are then given the same."""
    seed: int = 0
    """Seed of the order."""

    def __post_init__(self) -> None:
        at_least_one(flag("samples_per_shard"), self.samples_per_shard)
        if not self.image_field.strip("; ."):
            raise UserError(f"--image-field is empty, must name endings such as {IMAGE_FIELDS}")
        if self.classes is not None and not self.labels:
            raise UserError(
                "--classes says what labels are, and --no-labels writes none: give one of the two"
            )
