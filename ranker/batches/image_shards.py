"""The shards behind score tables: which file is whose, and the images of some rows in one reading of its bytes.

A slice is a run of rows of one table; tables keep the order of their shard, so its images lie together there. What
is kept of a shard is where its slices begin and end: some numbers each, however many samples there are.
"""

from __future__ import annotations

import dataclasses
import io
import threading
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from patchsieve.pipeline import storage
from patchsieve.pipeline.checks import typed
from patchsieve.pipeline.errors import ContentError, InfrastructureError, UserError
from patchsieve.pipeline.output.records import read_footer
from patchsieve.pipeline.row_config import DECODER, RowConfig
from patchsieve.pipeline.shards.feed import ShardRecord
from patchsieve.pipeline.shards.reader import Fault, Sample, image_fields_of, pick_image, samples_of
from patchsieve.pipeline.shards.specs import Shard
from patchsieve.pipeline.shards.tar_stream import BLOCK, TarStream, printable
from patchsieve.pipeline.tables.reader import TableFile
from patchsieve.pipeline.threads import map_threads
from patchsieve.ranker.batches.shard_bytes import Hashed, Headers, SamplePlaces, sample_places

_UNSORTED = "; what was scored with --unsorted needs that here too"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ImageShard:
    """The shard of one table: `url` as opened, `name`, `size` and `sha256` as the table says.

    `same_tag`: the store's mark of its version is the one that was scored, so that its content needs no hashing.
    `sample_bytes`: mean size of a sample in the archive. `image_field` as it was scored with. `unsorted`: members of a
    sample may lie anywhere in it.
    """

    url: str
    name: str
    size: int
    sha256: str
    same_tag: bool
    sample_bytes: float
    image_field: str
    unsorted: bool


def find_shards(
    files: Sequence[TableFile], shards: Sequence[Shard], *, unsorted: bool = False
) -> list[ImageShard]:
    """The shard of each table, by its name among `shards` (see `expand_shards`).

    Raises UserError where one is missing, has another size than the one that was scored, or was decoded in a way that
    this version does not know.
    """
    by_name = {shard.name: shard for shard in shards}
    missing = [file.shard for file in files if file.shard not in by_name]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        given = f"{shards[0].name}{', ...' if len(shards) > 1 else ''}" if shards else "none"
        raise UserError(
            f"--images lacks the shard {missing[0]}{more} of {files[0].url}; given: {given}. Tables name shards by "
            "URL, or by the path below the --root that they were scored with"
        )
    return map_threads(lambda file: _image_shard(file, by_name[file.shard], unsorted=unsorted), files)


def _image_shard(file: TableFile, shard: Shard, *, unsorted: bool) -> ImageShard:
    metadata = read_footer(file.url).metadata
    with storage.parsing(file.url):
        recorded = typed(ShardRecord, metadata["shard"])
        config = typed(RowConfig, metadata["config"])
    size, tag, decoder = recorded.size, recorded.tag, config.decoder
    if decoder != DECODER:
        raise UserError(
            f"{file.url} was scored with the image decoder {decoder}, this patchsieve has {DECODER}: replayed views "
            "could differ from what the teacher saw; score again, best with --store view"
        )
    if shard.size != size:
        raise UserError(
            f"{shard.name} has {shard.size} bytes, the shard that {file.url} was scored from had {size}"
        )
    return ImageShard(
        url=shard.url,
        name=shard.name,
        size=size,
        sha256=file.sha256,
        same_tag=bool(tag) and tag == shard.tag,
        sample_bytes=size / max(1, recorded.samples),
        image_field=config.image_field,
        unsorted=unsorted,
    )


class ShardImages:
    """The images of slices: where each begins in its shard is found when the first of that shard is read.

    A shard whose tag is not the scored one, or that is not local, is read whole for that, and its SHA-256 compared;
    of another one the headers alone are read. Safe to call from several threads, and to send to other processes,
    which find the places again.
    """

    def __init__(self, shard_of: Mapping[int, ImageShard], keys_of: Mapping[int, tuple[int, int]]) -> None:
        """`shard_of` and `keys_of` by number of the slice: its shard, and the digests of its first and last key."""
        self._shard_of, self._keys_of = dict(shard_of), dict(keys_of)
        self._start()

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._places: dict[tuple[str, str], tuple[storage.ObjectInfo, SamplePlaces]] = {}
        self._slices: dict[tuple[str, str], list[int]] = defaultdict(list)
        for number, shard in self._shard_of.items():
            self._slices[shard.url, shard.sha256].append(number)

    def __getstate__(self) -> dict[str, Any]:
        return {"_shard_of": self._shard_of, "_keys_of": self._keys_of}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def shard(self, number: int) -> ImageShard:
        """The shard of a slice."""
        return self._shard_of[number]

    def read(self, number: int, keys: Collection[str]) -> dict[str, bytes]:
        """The image files of these samples of a slice, by key; other members of its bytes pass through.

        Raises UserError where the shard is not the one that was scored, or lacks one of them; InfrastructureError
        where the store fails or the shard changes meanwhile.
        """
        if not keys:
            return {}
        shard = self._shard_of[number]
        info, places = self._located(shard)
        first, last = self._keys_of[number]
        if first not in places or last not in places:
            raise UserError(f"{_differs(shard)}: it lacks images of the table")
        # Of an unsorted shard, the images of the samples between two may lie anywhere.
        start, stop = (0, shard.size) if shard.unsorted else (places[first][0], places[last][1])
        if start >= stop:
            raise UserError(
                f"{_differs(shard)}: its samples are in another order than the table's rows{_UNSORTED}"
            )
        images = extract_images(shard, info, start, stop, keys)
        lost = next((key for key in keys if key not in images), None)
        if lost is not None:
            hint = "" if shard.unsorted else _UNSORTED
            raise UserError(
                f"{_differs(shard)}: it has no image of {lost}, or not where the table has it{hint}"
            )
        return images

    def _located(self, shard: ImageShard) -> tuple[storage.ObjectInfo, SamplePlaces]:
        now, content = _stat(shard), (shard.url, shard.sha256)
        with self._lock:
            known = self._places.get(content)
            if known is None:
                wanted = {digest for number in self._slices[content] for digest in self._keys_of[number]}
                known = self._places[content] = (now, locate(shard, wanted))
        if known[0] != now:
            raise InfrastructureError(f"{shard.name} changed since its images were first read")
        return known


def locate(shard: ImageShard, wanted: Collection[int]) -> SamplePlaces:
    """Where the samples of these digests of keys begin and end in the archive, in bytes; those that are there."""
    if shard.same_tag and storage.is_local(shard.url):
        headers = Headers(shard.url, shard.size)
        return sample_places(TarStream(headers.read, shard.size), headers, wanted)
    with storage.open_stream(shard.url) as stream:
        hashed = Hashed(stream)
        found = sample_places(TarStream(hashed.read, stream.size), hashed, wanted)
        while hashed.read(2**20):
            pass
        stream.check_unchanged()
    if hashed.digest.hexdigest() != shard.sha256:
        raise UserError(f"{_differs(shard)}: its SHA-256 is another one")
    return found


def extract_images(
    shard: ImageShard, info: storage.ObjectInfo, start: int, stop: int, keys: Collection[str]
) -> dict[str, bytes]:
    """The image files of these keys between two bytes of the archive, where samples begin and end."""
    fields = set(image_fields_of(shard.image_field))
    images: dict[str, bytes] = {}
    wanted = set(keys)
    end = io.BytesIO(bytes(2 * BLOCK))
    with storage.ByteStream(info, start=start, stop=stop) as stream:

        def read(count: int) -> bytes:
            data = stream.read(count)
            return data + end.read(count - len(data)) if len(data) < count else data

        # These samples as an archive of their own.
        archive = TarStream(read, stop - start + 2 * BLOCK)
        try:
            for item in samples_of(
                archive,
                keep=lambda key, field: printable(key) in wanted and field.lower() in fields,
                unsorted=shard.unsorted,
            ):
                # Of a sorted shard, no damage lies between samples that were scored.
                if isinstance(item, Fault) and item.stage == "archive" and not shard.unsorted:
                    raise ContentError(item.reason)
                if isinstance(item, Sample) and item.key in wanted:
                    picked = pick_image(item, shard.image_field)
                    if picked is not None:
                        images[item.key] = picked[1]
        except ContentError as error:
            raise UserError(f"{_differs(shard)}: {error}") from None
    return images


def _differs(shard: ImageShard) -> str:
    return f"{shard.name} is not the shard that was scored"


def _stat(shard: ImageShard) -> storage.ObjectInfo:
    try:
        info = storage.stat(shard.url)
    except FileNotFoundError:
        raise UserError(f"{shard.name} is gone: it was there when training was planned") from None
    if info.size != shard.size:
        raise UserError(f"{_differs(shard)}: it has {info.size} bytes instead of {shard.size}")
    return info
