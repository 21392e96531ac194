"""Photographs for the demo: found in scikit-image or in a folder, packed into shards as overlapping crops."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from torch import Tensor
from torch.nn.functional import interpolate

from patchsieve.pipeline.errors import ContentError, UserError
from patchsieve.pipeline.images.decode import decode_image
from patchsieve.pipeline.images.views import encode_view
from patchsieve.pipeline.pack.photos import SampleKeys, photos_below
from patchsieve.pipeline.row_config import IMAGE_FIELDS
from patchsieve.pipeline.shards.writer import ShardWriter
from patchsieve.pipeline.storage import join, remove_temporaries, scratch_folder
from patchsieve.pipeline.units import counted

_Item = TypeVar("_Item")

SCIKIT_IMAGE_PHOTOS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "motorcycle_left.png",
    "rocket.jpg",
    "retina.jpg",
    "ihc.png",
    "hubble_deep_field.jpg",
)
"""The colour photographs that the scikit-image wheel holds. `motorcycle_right.png` is left out because it shows the
same scene again; the wheel's other pictures are gray, drawn or made up."""

ENDINGS = tuple(f"{IMAGE_FIELDS};jpe;jfif;dib;avif;jp2;ppm;pgm;pbm".split(";"))
"""Endings of the files that are tried, in lower case."""

SHARDS = 4
FEWEST_CROPS = SHARDS - 1
"""One photo alone then fills every shard, so that no shard of an earlier demo stays behind."""

CROP_SHARE = 0.7
SHORTER_SIDE = 512
"""Larger photos are shrunk to this before they are cut: the teacher looks at 224 pixels."""

MOST_FILE_BYTES = 256 * 2**20
_LISTED = 20
# Where crops lie, as shares of the room: the middle first, so that few crops still show the subject.
_PLACES = ((1, 1), (0, 0), (0, 2), (2, 0), (2, 2), (0, 1), (1, 0), (1, 2), (2, 1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A sample made of a photo: its key, and the place of its top left pixel on the (shrunk) photo."""

    sample_key: str
    top: int
    left: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedPhoto:
    """A photo and its samples, the first of which is the whole photo."""

    name: str
    parts: Sequence[Part]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedPhotos:
    """Shards written, what is in them, and what could not be read and why; `found`: photos there were in all."""

    shards: Sequence[str]
    photos: Sequence[PackedPhoto]
    found: int
    unreadable: Sequence[str]

    @property
    def samples(self) -> int:
        """Samples of all photos together."""
        return sum(len(photo.parts) for photo in self.photos)

    def lines(self) -> list[str]:
        """What a user should know before scoring starts."""
        lines = [
            f"packed {counted(len(self.photos), 'photo')} as {counted(self.samples, 'sample')} (each whole and as "
            f"overlapping crops) into {counted(len(self.shards), 'shard')}"
        ]
        tried = len(self.photos) + len(self.unreadable)
        if tried < self.found:
            lines.append(f"took {tried} of {self.found} photos, evenly spaced; --samples takes more")
        lines += [f"cannot read {line}" for line in self.unreadable[:_LISTED]]
        if len(self.unreadable) > _LISTED:
            lines.append(f"cannot read {len(self.unreadable) - _LISTED} more")
        return lines


def find_photos(folder: str | None) -> list[tuple[str, Path]]:
    """Names and paths of the photos to show: those of a folder and its sub-folders, or scikit-image's.

    Hidden files and folders are left out. Raises UserError where there is none.
    """
    if folder is None:
        return _scikit_image_photos()
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UserError(f"--images {folder}: there is no such folder")
    found, _ = photos_below(str(root), ENDINGS)
    if not found:
        raise UserError(f"--images {folder}: no photos below it (files that end in .{', .'.join(ENDINGS)})")
    return [(photo.name, Path(photo.info.url)) for photo in found]


def _scikit_image_photos() -> list[tuple[str, Path]]:
    package = importlib.util.find_spec("skimage")
    if package is None or package.origin is None:
        raise UserError(
            "the demo's photographs come with scikit-image, which is not installed: "
            "pip install scikit-image, or give a folder of your own with --images DIR"
        )
    folder = Path(package.origin).parent / "data"
    found = [(name, folder / name) for name in SCIKIT_IMAGE_PHOTOS if (folder / name).is_file()]
    if not found:
        raise UserError(
            f"this scikit-image has no photographs in {folder}: "
            "pip install --force-reinstall scikit-image, or give a folder of your own with --images DIR"
        )
    return found


def pack_photos(
    photos: Sequence[tuple[str, Path]], folder: str, *, samples: int, run_id: str
) -> PackedPhotos:
    """Pack photos into SHARDS shards `photos-N.tar` in a folder (any fsspec URL), at least one sample in each.

    About `samples` samples are made: each photo whole, then three to nine overlapping crops of it; of photos too
    many for that, evenly spaced ones are taken. A photo that cannot be read is named in the result. Raises
    UserError when none can be read.
    """
    chosen = spread(photos, max(1, samples // (1 + FEWEST_CROPS)))
    crops = max(FEWEST_CROPS, min(len(_PLACES), -(-samples // len(chosen)) - 1))
    packed: list[PackedPhoto] = []
    unreadable: list[str] = []
    keys = SampleKeys()
    urls = [join(folder, f"photos-{number}.tar") for number in range(SHARDS)]
    remove_temporaries(folder, keep_run_id=run_id)
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(scratch_folder())
        writers = [stack.enter_context(ShardWriter(scratch / f"{number}.tar")) for number in range(SHARDS)]
        count = 0
        for name, path in chosen:
            try:
                photo = shrink(_decode(path))
            except ContentError as error:
                unreadable.append(f"{name}: {error}")
                continue
            stem = keys.new(name)
            parts = []
            for number, (top, left, height, width) in enumerate(
                cut_boxes(photo.shape[1], photo.shape[2], crops)
            ):
                key = f"{stem}-crop{number}" if number else f"{stem}-whole"
                jpeg = encode_view(photo[:, top : top + height, left : left + width])
                writers[count % SHARDS].add(key, {"jpg": jpeg})
                parts.append(Part(sample_key=key, top=top, left=left))
                count += 1
            packed.append(PackedPhoto(name=name, parts=parts))
        if not packed:
            raise UserError(f"none of {len(chosen)} photos can be read: {'; '.join(unreadable[:3])}")
        for writer, url in zip(writers, urls, strict=True):
            writer.commit(url, run_id=run_id)
    return PackedPhotos(shards=urls, photos=packed, found=len(photos), unreadable=unreadable)


def spread(items: Sequence[_Item], most: int) -> Sequence[_Item]:
    """At most `most` of the items, evenly spaced, the first one among them."""
    return items if len(items) <= most else [items[number * len(items) // most] for number in range(most)]


def shrink(photo: Tensor) -> Tensor:
    """The photo, uint8 `[3, H, W]`, with its shorter side at most SHORTER_SIDE pixels."""
    height, width = photo.shape[1:]
    share = SHORTER_SIDE / min(height, width)
    if share >= 1:
        return photo
    size = (max(1, round(height * share)), max(1, round(width * share)))
    return interpolate(photo[None].contiguous(), size=size, mode="bicubic", antialias=True)[0]


def cut_boxes(height: int, width: int, crops: int) -> Iterator[tuple[int, int, int, int]]:
    """(top, left, height, width) of the whole photo, then of `crops` crops of CROP_SHARE of each side."""
    yield 0, 0, height, width
    tall, wide = max(1, round(height * CROP_SHARE)), max(1, round(width * CROP_SHARE))
    for down, right in _PLACES[:crops]:
        yield (height - tall) * down // 2, (width - wide) * right // 2, tall, wide


def _decode(path: Path) -> Tensor:
    try:
        if path.stat().st_size > MOST_FILE_BYTES:
            raise ContentError(f"more than {MOST_FILE_BYTES >> 20} MiB")
        return decode_image(path.read_bytes())
    except OSError as error:
        raise ContentError(error.strerror or type(error).__name__) from error
