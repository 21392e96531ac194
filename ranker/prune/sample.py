"""One sample of a prune run: decoded and cropped before it is ranked, and what it becomes in the pruned shard.

Pure, and safe on many threads.

Shape suffixes: L patches of an image, P values of a patch, S side of the written crop in pixels.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from patchsieve.pipeline.errors import ContentError
from patchsieve.pipeline.images.decode import decode_image
from patchsieve.pipeline.images.patches import patchify
from patchsieve.pipeline.images.pixel_gate import GATE
from patchsieve.pipeline.images.views import ViewBox, apply_view, draw_view
from patchsieve.pipeline.pruned.codec import ImageCodec, flatten_dropped, pack_mosaic
from patchsieve.pipeline.pruned.format import (
    BACKGROUND_FIELD,
    RECORD_FIELD,
    PackedRecord,
    mosaic_columns,
    packed_field,
)
from patchsieve.pipeline.pruned.index import IndexRow
from patchsieve.pipeline.pruned.sources import DROPPED
from patchsieve.pipeline.row_config import DECODER
from patchsieve.pipeline.shards.feed import bytes_held
from patchsieve.pipeline.shards.reader import MAX_NAME, Fault, Rejected, Sample, pick_image
from patchsieve.ranker.prune.config import PruneCrop, PruneFormat
from patchsieve.ranker.select.image_choice import ShardChoice


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruneSpec:
    """What is read from a sample and written for it. `grid` patches of `patch_size` px are ranked along each side,
    `size` is the side of the written crop in pixels, `background` that of its thumbnail, None for none; `codec` None:
    no image is written; `unsorted`: as `ShardReader` has it.
    """

    image_field: str
    crop: PruneCrop
    grid: int
    patch_size: int
    size: int
    format: PruneFormat
    codec: ImageCodec | None
    drop_bad: bool
    background: int | None = None
    unsorted: bool = False

    @property
    def coarse(self) -> int:
        """Kept patches that have as many pixels, and so tokens, as the thumbnail; rounded up."""
        return 0 if self.background is None else -(-(self.background**2) // self.block**2)

    @property
    def block(self) -> int:
        """Pixels that a position stands for along each side of the written crop."""
        return self.size // self.grid

    @property
    def fields(self) -> dict[str, Any]:
        """What can change a pruned shard, by name."""
        fields = dataclasses.asdict(self)
        codec = fields.pop("codec")
        # Named only where they are used: outputs from before there were such have the same identity.
        if self.background is None:
            del fields["background"]
        if not self.unsorted:
            del fields["unsorted"]
        if self.codec is not None:
            fields["codec"] = codec["name"]
            if codec["name"] != "png":
                fields["quality"] = codec["quality"]
        return {**fields, "decoder": DECODER}


@dataclasses.dataclass(kw_only=True, slots=True)
class Prepared:
    """An image that is ready to be ranked. `patches`: uint8 `[L, P]`; `pixels`: uint8 `[3, S, S]`, None for an index;
    `background`: its thumbnail, uint8 `[3, T, T]`, if there is to be one.

    `field` is that of the image in the sample; `box` in decoded pixels. `image_score`: the teacher's, None where images
    are not chosen by it or the tables have none of this one.
    """

    sample: Sample
    field: str
    image_size: tuple[int, int]
    box: ViewBox
    patches: Tensor
    pixels: Tensor | None
    background: Tensor | None = None
    image_score: float | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the sample's members."""
        return bytes_held(self.sample)


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

    @classmethod
    def of(cls, sample: Sample, fault: Fault) -> Left:
        """A sample that is left as it is, with every member that could be read."""
        members = tuple((sample.members[field], data) for field, data in sample.fields.items())
        return cls(fault=fault, members=members, is_sample=True)

    @property
    def dropped(self) -> bool:
        """Whether it is left out on purpose."""
        return self.image_score is not None

    @property
    def nbytes(self) -> int:
        """Bytes of its members."""
        return sum(len(data) for _, data in self.members)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Written:
    """What one sample becomes: members in order, and its row of the index where it is one.

    `whole_bytes`: of its whole crop in the same codec, where that was asked for.
    """

    members: list[tuple[str, bytes]]
    row: IndexRow | None
    whole_bytes: int | None = None


def prepare_sample(
    item: Sample | Fault, spec: PruneSpec, images: ShardChoice | None = None
) -> Prepared | Left:
    """Decode and crop the image of a sample, or say why it is left as it is, or left out.

    `images`: which of the shard's images stay, None for all.
    """
    if isinstance(item, Fault):
        fault = Fault(item.sample_key, item.member, item.stage, item.reason)
        return Left(fault=fault, members=item.members if isinstance(item, Rejected) else (), is_sample=False)
    score = None if images is None else images.scores.get(item.key)
    if images is not None and score is not None and score < images.threshold:
        dropped = Left.of(item, Fault(item.key, None, DROPPED, images.reason))
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
        return Left.of(item, Fault(item.key, member, "sample", str(error)))
    try:
        with GATE.hold(data):
            return dataclasses.replace(_crop(item, field, decode_image(data), spec), image_score=score)
    except ContentError as error:
        return Left.of(item, Fault(item.key, item.members[field], "decode", str(error)))


def new_members(sample: Sample, field: str, spec: PruneSpec) -> tuple[str, ...]:
    """Names of the members that stand where the image was: for `packed` those of the mosaic, record and thumbnail."""
    assert spec.codec is not None
    stem = sample.members[field][: -len(field)]
    if spec.format == "packed":
        thumbnail = () if spec.background is None else (BACKGROUND_FIELD,)
        return tuple(f"{stem}{name}" for name in (packed_field(spec.codec.name), RECORD_FIELD, *thumbnail))
    before, dot, _ = field.rpartition(".")
    return (f"{stem}{before}{dot}{spec.codec.extension}",)


def _check_names(sample: Sample, field: str, spec: PruneSpec) -> None:
    if spec.codec is None:
        return
    others = {name.lower() for other, name in sample.members.items() if other != field}
    for name in new_members(sample, field, spec):
        if len(name) > MAX_NAME:
            raise ContentError(
                f"{name[:60]}...: pruning would give it a name of more than {MAX_NAME} characters"
            )
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
        background=None if spec.background is None else apply_view(image, box, spec.background),
    )


def encode_image(
    image: Prepared,
    scores_L: NDArray[np.float32],
    keep_L: NDArray[np.bool_],
    spec: PruneSpec,
    *,
    whole: bool = False,
) -> Written:
    """What a ranked image becomes under its keep mask; `whole`: tell the bytes of its whole crop too."""
    positions = np.flatnonzero(keep_L)
    box = image.box
    crop = (box.top, box.left, box.height, box.width)
    files = _image_files(image, keep_L, positions, crop, spec)
    members: list[tuple[str, bytes]] = []
    for field, data in image.sample.fields.items():
        if field != image.field:
            members.append((image.sample.members[field], data))
        elif files:
            members += zip(new_members(image.sample, field, spec), files, strict=True)
    row = IndexRow(
        sample_key=image.sample.key,
        bytes_before=len(image.sample.fields[image.field]),
        bytes_after=sum(map(len, files)),
        image_size=image.image_size,
        crop=crop,
        positions=positions.astype(np.int16),
        scores=scores_L[positions],
        image_score=image.image_score,
    )
    whole_bytes = None
    if whole and spec.codec is not None and image.pixels is not None:
        whole_bytes = len(spec.codec.encode(image.pixels))
    return Written(members=members, row=row, whole_bytes=whole_bytes)


def copy_left(item: Left, spec: PruneSpec) -> Written:
    """How what is not pruned is copied, or left out."""
    copied = spec.codec is not None and not spec.drop_bad and not item.dropped
    row = None
    if item.is_sample:
        assert item.fault.sample_key is not None
        row = IndexRow(
            sample_key=item.fault.sample_key,
            bytes_before=item.nbytes,
            bytes_after=item.nbytes if copied else 0,
            image_score=item.image_score,
            reason=f"{item.fault.stage}: {item.fault.reason}",
        )
    return Written(members=list(item.members) if copied else [], row=row)


def _image_files(
    image: Prepared,
    keep_L: NDArray[np.bool_],
    positions: NDArray[np.int64],
    crop: tuple[int, int, int, int],
    spec: PruneSpec,
) -> tuple[bytes, ...]:
    """What stands for the image, in the order of `new_members`; nothing for an index."""
    if spec.codec is None:
        return ()
    assert image.pixels is not None
    if spec.format == "masked":
        return (spec.codec.encode(flatten_dropped(image.pixels, keep_L, spec.grid, image.background)),)
    record = PackedRecord(
        grid=spec.grid,
        block=spec.block,
        positions=tuple(positions.tolist()),
        columns=mosaic_columns(len(positions), spec.block),
        original_size=image.image_size,
        crop=crop,
        codec=spec.codec.name,
        background=spec.background,
    )
    files = (spec.codec.encode(pack_mosaic(image.pixels, record)), record.to_json())
    if image.background is None:
        return files
    return (*files, ImageCodec("jpeg", spec.codec.quality).encode(image.background))
