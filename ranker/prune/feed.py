"""From a shard to ranked images: decode and crop on threads, score in batches; in shard order, nothing written.

Shape suffixes: L patches of an image, P values of a patch, S side of the written crop in pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from patchsieve.pipeline.errors import ContentError
from patchsieve.pipeline.images.decode import decode_image
from patchsieve.pipeline.images.patches import patchify
from patchsieve.pipeline.images.views import ViewBox, apply_view, draw_view
from patchsieve.pipeline.pruned.codec import ImageCodec
from patchsieve.pipeline.pruned.format import RECORD_FIELD, packed_field
from patchsieve.pipeline.pruned.sources import DROPPED
from patchsieve.pipeline.row_config import DECODER
from patchsieve.pipeline.shards.feed import MAX_BYTES, ShardFeed
from patchsieve.pipeline.shards.reader import Fault, Rejected, Sample, ShardReader, pick_image
from patchsieve.pipeline.shards.specs import Shard
from patchsieve.ranker.prune.config import PruneCrop, PruneFormat
from patchsieve.ranker.select.image_choice import ShardChoice
from patchsieve.ranker.select.patch_scorer import PatchScorer

_LEFT_PER_BATCH = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruneSpec:
    """What is read from a sample and written for it. `grid` patches of `patch_size` px are ranked along each side,
    `size` is the side of the written crop in pixels; `codec` None: no image is written.
    """

    image_field: str
    crop: PruneCrop
    grid: int
    patch_size: int
    size: int
    format: PruneFormat
    codec: ImageCodec | None
    drop_bad: bool

    @property
    def block(self) -> int:
        """Pixels that a position stands for along each side of the written crop."""
        return self.size // self.grid

    @property
    def fields(self) -> dict[str, Any]:
        """What can change a pruned shard, by name."""
        fields = dataclasses.asdict(self)
        codec = fields.pop("codec")
        if self.codec is not None:
            fields["codec"] = codec["name"]
            if codec["name"] != "png":
                fields["quality"] = codec["quality"]
        return {**fields, "decoder": DECODER}


@dataclasses.dataclass(kw_only=True, slots=True)
class Prepared:
    """An image that is ready to be ranked. `patches`: uint8 `[L, P]`; `pixels`: uint8 `[3, S, S]`, None for an index.

    `field` is that of the image in the sample; `box` in decoded pixels. `image_score`: the teacher's, None where images
    are not chosen by it or the tables have none of this one.
    """

    sample: Sample
    field: str
    image_size: tuple[int, int]
    box: ViewBox
    patches: Tensor
    pixels: Tensor | None
    image_score: float | None = None


@dataclasses.dataclass(kw_only=True, slots=True)
class Left:
    """What is not pruned: why, and the members that can be copied, (name, data) in order.

    `is_sample`: else these members make none (a key seen before, a name that is not UTF-8, a damaged archive).
    `image_score`: that of a sample that is dropped on purpose, for its score; then `fault` says so and is none.
    """

    fault: Fault
    members: tuple[tuple[str, bytes], ...]
    is_sample: bool
    image_score: float | None = None

    @property
    def dropped(self) -> bool:
        """Whether it is left out on purpose."""
        return self.image_score is not None


Item = Prepared | Left
Ranked = tuple[Prepared, NDArray[np.float32]] | Left
"""An image with its scores, float32 `[L]`, or what is left."""


def feed_of(
    shard: Shard, spec: PruneSpec, pool: ThreadPoolExecutor, ahead: int, images: ShardChoice | None = None
) -> ShardFeed[Item]:
    """The samples of a shard, prepared on the pool; `images`: which of them stay, None for all."""
    reader = ShardReader(shard, keep_rejected=True)
    return ShardFeed(reader, lambda item: prepare(item, spec, images), pool, ahead)


def prepare(item: Sample | Fault, spec: PruneSpec, images: ShardChoice | None = None) -> Item:
    """Decode and crop the image of a sample, or say why it is left as it is, or left out."""
    if isinstance(item, Fault):
        fault = Fault(item.sample_key, item.member, item.stage, item.reason)
        return Left(fault=fault, members=item.members if isinstance(item, Rejected) else (), is_sample=False)
    score = None if images is None else images.scores.get(item.key)
    if images is not None and score is not None and score < images.threshold:
        dropped = left(item, Fault(item.key, None, DROPPED, images.reason))
        return dataclasses.replace(dropped, image_score=score)
    member = None
    try:
        for name, problem in item.problems.items():
            member = item.members[name]
            raise ContentError(f"{member}: {problem}")
        picked = pick_image(item, spec.image_field)
        if picked is None:
            raise ContentError(f"no image field; fields: {', '.join(item.members)}"[:500])
        field, data = picked
        _check_names(item, field, spec)
    except ContentError as error:
        return left(item, Fault(item.key, member, "sample", str(error)))
    try:
        return dataclasses.replace(_crop(item, field, decode_image(data), spec), image_score=score)
    except ContentError as error:
        return left(item, Fault(item.key, item.members[field], "decode", str(error)))


def left(sample: Sample, fault: Fault) -> Left:
    """A sample that is left as it is, with every member that could be read."""
    members = tuple((sample.members[field], data) for field, data in sample.fields.items())
    return Left(fault=fault, members=members, is_sample=True)


def new_members(sample: Sample, field: str, spec: PruneSpec) -> tuple[str, ...]:
    """Names of the members that stand where the image was: for `packed` the mosaic's and its record's."""
    assert spec.codec is not None
    stem = sample.members[field][: -len(field)]
    if spec.format == "packed":
        return f"{stem}{packed_field(spec.codec.name)}", f"{stem}{RECORD_FIELD}"
    before, dot, _ = field.rpartition(".")
    return (f"{stem}{before}{dot}{spec.codec.extension}",)


def _check_names(sample: Sample, field: str, spec: PruneSpec) -> None:
    if spec.codec is None:
        return
    others = {name.lower() for other, name in sample.members.items() if other != field}
    for name in new_members(sample, field, spec):
        if name.lower() in others:
            raise ContentError(f"it has a member {name} already, which pruning would write")


def _crop(sample: Sample, field: str, image: Tensor, spec: PruneSpec) -> Prepared:
    height, width = image.shape[1:]
    seen_size = spec.grid * spec.patch_size
    if spec.crop == "center":
        box = draw_view(0, sample.key, 0, height=height, width=width, crop="center", size=seen_size)
    else:
        box = ViewBox(0, 0, height, width, hflip=False)
    seen = apply_view(image, box, seen_size)
    pixels = None
    if spec.codec is not None:
        pixels = seen if spec.size == seen_size else apply_view(image, box, spec.size)
    return Prepared(
        sample=sample,
        field=field,
        image_size=(height, width),
        box=box,
        patches=patchify(seen[None], spec.patch_size)[0],
        pixels=pixels,
    )


def batches(items: Iterable[Item], images: int) -> Iterator[list[Item]]:
    """The items in lists that hold so many images, fewer where large samples would fill the memory.

    Where a list ends depends on the items alone, so that a shard is always ranked in the same batches.
    """
    batch: list[Item] = []
    prepared = held = 0
    for item in items:
        batch.append(item)
        prepared += isinstance(item, Prepared)
        held += weight_of(item)
        if prepared == images or len(batch) >= _LEFT_PER_BATCH * images or held >= MAX_BYTES:
            yield batch
            batch, prepared, held = [], 0, 0
    if batch:
        yield batch


def rank(batch: list[Item], scorer: PatchScorer) -> list[Ranked]:
    """Score the images of a batch; one whose scores are not finite is left."""
    images = [item for item in batch if isinstance(item, Prepared)]
    if not images:
        return [item for item in batch if isinstance(item, Left)]
    scores = iter(scorer.score([image.patches for image in images], [image.sample.key for image in images]))
    ranked: list[Ranked] = []
    for item in batch:
        if isinstance(item, Left):
            ranked.append(item)
            continue
        scores_L = next(scores)
        if np.isfinite(scores_L).all():
            ranked.append((item, scores_L))
        else:
            reason = f"the scores of {scorer.source.name} are not finite"
            ranked.append(left(item.sample, Fault(item.sample.key, None, "score", reason)))
    return ranked


def weight_of(item: Item) -> int:
    """Bytes of members that an item holds in memory."""
    if isinstance(item, Left):
        return sum(len(data) for _, data in item.members)
    return sum(map(len, item.sample.fields.values()))
