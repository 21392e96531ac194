"""From a shard to views that are ready for the teacher, decoded on threads ahead of it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from patchsieve.pipeline.errors import ContentError
from patchsieve.pipeline.images.decode import decode_image
from patchsieve.pipeline.images.pixel_gate import GATE
from patchsieve.pipeline.randomness import KeyedRandom
from patchsieve.pipeline.row_config import RowConfig
from patchsieve.pipeline.scoring.views import View, draw_views
from patchsieve.pipeline.shards.feed import ShardFeed
from patchsieve.pipeline.shards.reader import Fault, Sample, ShardReader, image_fields_of, pick_image
from patchsieve.pipeline.shards.specs import Shard

ViewsOf = Callable[[str, bytes], list[View]]
"""(sample key, image file) to views; raises ContentError for an image that gives none."""


def in_share(sample_key: str, rows: RowConfig) -> bool:
    """Whether `--sample` takes this sample: a fixed share of all keys, the same ones in every run."""
    return rows.sample >= 1 or float(KeyedRandom(rows.seed, sample_key, "sample").uniform(1)[0]) < rows.sample


class ViewFeed(ShardFeed[list[View] | Fault]):
    """The views of each image of a shard that `--sample` takes, or a fault; see `ShardFeed`."""

    def __init__(
        self,
        shard: Shard,
        rows: RowConfig,
        views_of: ViewsOf,
        pool: ThreadPoolExecutor,
        ahead: int,
        *,
        unsorted: bool = False,
    ) -> None:
        """`views_of`: makes views of an image file, on the threads of `pool`; `unsorted`: as `ShardReader` has it."""
        wanted = set(image_fields_of(rows.image_field))
        # Other fields may be far larger than the images, and nobody here looks at them.
        reader = ShardReader(shard, keep_fields=lambda field: field.lower() in wanted, unsorted=unsorted)
        super().__init__(
            reader,
            lambda item: prepare_views(item, rows.image_field, views_of),
            pool,
            ahead,
            takes=lambda key: in_share(key, rows),
        )


def views_here(rows: RowConfig, patch_size: int) -> ViewsOf:
    """Makes views in this process."""
    return lambda key, data: draw_views(key, decode_image(data), rows, patch_size)


def prepare_views(item: Sample | Fault, image_field: str, views_of: ViewsOf) -> list[View] | Fault:
    """The views of a sample, or why it gives none; a fault stays as it is."""
    if isinstance(item, Fault):
        return item
    try:
        picked = pick_image(item, image_field)
    except ContentError as error:
        return Fault(item.key, None, "sample", str(error))
    if picked is None:
        fields = ", ".join(item.members) or "none"
        return Fault(item.key, None, "sample", f"no image field; fields: {fields}"[:500])
    field, data = picked
    try:
        with GATE.hold(data):
            return views_of(item.key, data)
    except ContentError as error:
        return Fault(item.key, item.members.get(field), "decode", str(error))
