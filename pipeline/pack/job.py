"""Packing: what goes into which shard is decided first, from a listing; then a shard after the other is written.

OUT holds `photos-NNNNNN.tar` and `pack.json`, which says what is packed there: the identity of the plan, the classes in
the order of their numbers, and the settings.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from patchsieve.pipeline import storage
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.identity import digest_of
from patchsieve.pipeline.pack.config import PackConfig
from patchsieve.pipeline.pack.photos import (
    PhotoFile,
    SampleKeys,
    classes_of,
    is_too_large,
    photos_below,
    shown_names,
)
from patchsieve.pipeline.randomness import KeyedRandom
from patchsieve.pipeline.shards.reader import MEMBER_LIMIT, image_fields_of
from patchsieve.pipeline.shards.specs import SHARD_SUFFIX
from patchsieve.pipeline.shards.writer import ShardWriter
from patchsieve.pipeline.threads import THREADS, map_threads
from patchsieve.pipeline.units import counted

PLAN_NAME = "pack.json"
_AT_ONCE_BYTES = 256 * 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackSummary:
    """What is packed: URLs of the shards, names of the classes by number (empty: no labels), how many photos."""

    shards: tuple[str, ...]
    classes: tuple[str, ...]
    photos: int


@dataclasses.dataclass(frozen=True, slots=True)
class _Packed:
    key: str
    photo: PhotoFile


def pack(config: PackConfig, say: Callable[[str], None], *, run_id: str) -> PackSummary:
    """Pack the photos of a folder; shards that are there from a run before, of the same photos (names and sizes), stay.

    Raises UserError where there is nothing to pack, where OUT holds something else, and for a photo that changes
    meanwhile; InfrastructureError for faults of the stores.
    """
    endings = image_fields_of(config.image_field)
    photos, others = photos_below(config.folder, endings)
    for count, ending in sorted(((count, name) for name, count in others.items()), reverse=True):
        say(f"{count} files that end in {f'.{ending}' if ending else 'nothing'} are left out (--image-field)")
    left_out = [photo for photo in photos if is_too_large(photo)]
    if left_out:
        names = shown_names([photo.name for photo in left_out])
        say(f"more than {MEMBER_LIMIT >> 20} MiB or names too long to be read back, left out: {names}")
        photos = [photo for photo in photos if not is_too_large(photo)]
    empty = [photo.name for photo in photos if photo.info.size == 0]
    if empty:
        say(f"empty files, left out: {shown_names(empty)}")
        photos = [photo for photo in photos if photo.info.size != 0]
    if not photos:
        raise UserError(
            f"{storage.redact(config.folder)}: no photo in it or below (files that end in .{', .'.join(endings)})"
        )
    classes = _classes(config, photos)
    if classes:
        say(f"classes, numbered from 0 on: {shown_names(classes)}")
    keys = SampleKeys()
    named = [_Packed(keys.new(photo.name), photo) for photo in photos]
    order = KeyedRandom(config.seed, "", "pack").permutation(len(named))
    shuffled = [named[index] for index in order]
    size = config.samples_per_shard
    parts = [shuffled[start : start + size] for start in range(0, len(shuffled), size)]
    _adopt(config, classes, parts, run_id=run_id)
    urls = [storage.join(config.out, f"photos-{number:06d}{SHARD_SUFFIX}") for number in range(len(parts))]
    done = {info.url for info in storage.list_folder(storage.absolute_url(config.out), suffix=SHARD_SUFFIX)}
    for url, part in zip(urls, parts, strict=True):
        if storage.absolute_url(url) not in done:
            _write(url, part, classes, run_id=run_id)
            say(f"{storage.split_name(url)[1]}: {counted(len(part), 'photo')}")
    return PackSummary(shards=tuple(urls), classes=tuple(classes), photos=len(photos))


def _classes(config: PackConfig, photos: Sequence[PhotoFile]) -> list[str]:
    """The classes by number: those of the folder, or of the other packing that was named."""
    if not config.labels:
        return []
    found = classes_of(photos)
    if config.classes is None:
        return found
    content = _read_plan(config.classes)
    if content is None:
        raise UserError(
            f"--classes {storage.redact(config.classes)} holds no {PLAN_NAME}: give the OUT of a packing"
        )
    known: list[str] = content["classes"]
    unknown = sorted(set(found) - set(known))
    if unknown or not found:
        what = shown_names(unknown) if unknown else "photos without a sub folder"
        raise UserError(f"--classes {storage.redact(config.classes)} has no class for {what}")
    return known


def _adopt(
    config: PackConfig, classes: Sequence[str], parts: Sequence[Sequence[_Packed]], *, run_id: str
) -> None:
    """Fix what is packed in OUT, or check that it is what is packed there already."""
    # Times of change are none of it: photos that were copied or written again as they were are the same.
    listing = [[(one.key, one.photo.ending, one.photo.info.size) for one in part] for part in parts]
    identity = digest_of([listing, list(classes), bool(classes)])
    stored = _read_plan(config.out)
    if stored is not None and stored["identity"] != identity:
        raise UserError(
            f"{storage.redact(config.out)} holds shards of other photos or settings (or the folder has changed since): "
            "choose another --out"
        )
    if stored is None and storage.list_folder(storage.absolute_url(config.out), suffix=SHARD_SUFFIX):
        raise UserError(
            f"{storage.redact(config.out)} holds shards that are not of a packing: choose another --out"
        )
    storage.remove_temporaries(storage.absolute_url(config.out), keep_run_id=run_id)
    if stored is None:
        content = {"identity": identity, "classes": classes, "settings": storage.kept_settings(config)}
        data = json.dumps(content, indent=1).encode()
        storage.commit_bytes(data, storage.join(config.out, PLAN_NAME), run_id=run_id)


def _read_plan(folder: str) -> dict[str, Any] | None:
    """What a packing wrote, None where there was none; DamagedFileError for a file that is not as it was written."""
    url = storage.join(storage.absolute_url(folder), PLAN_NAME)
    try:
        with storage.parsing(url):
            content = storage.read_object(url)
            if not isinstance(content["identity"], str):
                raise TypeError("identity is no text")
            if not all(isinstance(name, str) for name in content["classes"]):
                raise TypeError("classes are no texts")
    except FileNotFoundError:
        return None
    return content


def _write(url: str, part: Sequence[_Packed], classes: Sequence[str], *, run_id: str) -> None:
    numbers = {name: str(number).encode() for number, name in enumerate(classes)}
    with storage.scratch_folder() as scratch, ShardWriter(scratch / "shard.tar") as writer:
        for several in _at_once(part):
            for one, data in zip(several, map_threads(_read, several), strict=True):
                fields = {one.photo.ending: data}
                if numbers:
                    fields["cls"] = numbers[one.photo.class_name or ""]
                writer.add(one.key, fields)
        writer.commit(url, run_id=run_id)


def _at_once(part: Sequence[_Packed]) -> Iterator[list[_Packed]]:
    """Photos that are read at one time: as many as there are threads, of bounded bytes together."""
    several: list[_Packed] = []
    held = 0
    for one in part:
        size = one.photo.info.size or 0
        if several and (len(several) == THREADS or held + size > _AT_ONCE_BYTES):
            yield several
            several, held = [], 0
        several.append(one)
        held += size
    yield several


def _read(one: _Packed) -> bytes:
    info = one.photo.info
    try:
        data = storage.read_bytes(info.url, limit=MEMBER_LIMIT)
    except FileNotFoundError:
        data = None
    if data is None or len(data) != info.size:
        raise UserError(f"{storage.redact(info.url)} changed while it was packed: choose another --out")
    return data
