"""From a shard to views that are ready for the teacher, decoded on threads ahead of it."""

from __future__ import annotations

import dataclasses
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from torch import Tensor

from patchrank.pipeline.config import RowConfig
from patchrank.pipeline.errors import ContentError
from patchrank.pipeline.images import ViewBox, apply_view, decode_image, decode_view, draw_view, encode_view
from patchrank.pipeline.patches import draw_visible, patchify, visible_count
from patchrank.pipeline.randomness import KeyedRandom
from patchrank.pipeline.shards import Fault, Sample, Shard, ShardReader, image_fields_of, pick_image


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """One view, ready for the teacher: `pixels` uint8 `[L, P]`, `visible` int16 `[V]`."""

    sample_key: str
    view: int
    image_size: tuple[int, int]
    box: ViewBox
    pixels: Tensor
    visible: np.ndarray[Any, np.dtype[np.int16]]
    jpeg: bytes | None


def draw_views(sample_key: str, image: Tensor, rows: RowConfig, patch_size: int) -> list[View]:
    """All views of one decoded image (uint8 `[3, H, W]`): a pure function of key, pixels and config."""
    height, width = image.shape[1:]
    grid = rows.size // patch_size
    fixed = rows.crop == "center"
    views: list[View] = []
    for number in range(rows.first_view, rows.first_view + rows.views):
        if not (fixed and views):
            box = draw_view(
                rows.seed, sample_key, number, height=height, width=width, crop=rows.crop, size=rows.size
            )
            pixels = apply_view(image, box, rows.size)
            jpeg = encode_view(pixels) if rows.store == "view" else None
            # The row is its own evidence: the teacher sees what the table holds.
            seen = decode_view(jpeg) if jpeg is not None else pixels
            patches = patchify(seen[None], patch_size)[0]
        visible = draw_visible(
            rows.seed,
            sample_key,
            number,
            grid=grid,
            count=visible_count(grid**2, rows.mask_ratio),
            masks=rows.masks,
            partition=fixed,
        )
        views.append(
            View(
                sample_key=sample_key,
                view=number,
                image_size=(height, width),
                box=box,
                pixels=patches,
                visible=visible,
                jpeg=jpeg,
            )
        )
    return views


def in_share(sample_key: str, rows: RowConfig) -> bool:
    """Whether `--sample` takes this sample: a fixed share of all keys, the same ones in every run."""
    return rows.sample >= 1 or float(KeyedRandom(rows.seed, sample_key, "sample").uniform(1)[0]) < rows.sample


class ViewFeed:
    """Reads a shard on one thread and decodes on the pool, ahead of the consumer and in shard order.

    Iterating yields the views of one image, or a fault. At most `ahead` samples are in memory. `position`: bytes of
    the archive whose samples were yielded; `samples`, `size`, `sha256` and `damaged` hold once it has ended.
    """

    def __init__(self, shard: Shard, rows: RowConfig, patch_size: int, pool: ThreadPoolExecutor, ahead: int):
        self._rows, self._patch_size, self._pool = rows, patch_size, pool
        wanted = set(image_fields_of(rows.image_field))
        # Other fields may be far larger than the images, and nobody here looks at them.
        self._reader = ShardReader(shard, keep_fields=lambda field: field.lower() in wanted)
        self._queue: deque[tuple[Future[list[View] | Fault], int]] = deque()
        self._room = threading.Semaphore(ahead)
        self._ready = threading.Condition()
        self._closed = False
        self._error: BaseException | None = None
        self._ended = False
        self.samples = 0
        self.position = 0
        self.size = 0
        self.sha256 = ""
        self.damaged = False
        self._thread = threading.Thread(target=self._read, name=f"read {shard.id}", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[list[View] | Fault]:
        while True:
            with self._ready:
                while not self._queue and not self._ended:
                    self._ready.wait()
                if not self._queue:
                    break
                future, position = self._queue.popleft()
            prepared = future.result()
            self.position = position
            yield prepared
            self._room.release()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Stop reading and wait for the thread; safe to call twice."""
        self._closed = True
        self._room.release()
        self._thread.join()
        for future, _ in self._queue:
            future.cancel()

    def _read(self) -> None:
        try:
            with self._reader as reader:
                for item in reader:
                    self._put(item)
                    if self._closed:
                        return
                self.size, self.sha256, self.damaged = reader.size, reader.sha256, reader.damaged
        except BaseException as error:
            self._error = error
        finally:
            with self._ready:
                self._ended = True
                self._ready.notify()

    def _put(self, item: Sample | Fault) -> None:
        key = item.key if isinstance(item, Sample) else item.sample_key
        if key is not None:
            self.samples += 1
            if not in_share(key, self._rows):
                return
        self._room.acquire()
        if self._closed:
            return
        future = self._pool.submit(prepare, item, self._rows, self._patch_size)
        with self._ready:
            self._queue.append((future, self._reader.position))
            self._ready.notify()


def prepare(item: Sample | Fault, rows: RowConfig, patch_size: int) -> list[View] | Fault:
    """The views of a sample, or why it gives none; a fault stays as it is."""
    if isinstance(item, Fault):
        return item
    try:
        picked = pick_image(item, rows.image_field)
    except ContentError as error:
        return Fault(item.key, None, "sample", str(error))
    if picked is None:
        fields = ", ".join(item.members) or "none"
        return Fault(item.key, None, "sample", f"no image field; fields: {fields}"[:500])
    field, data = picked
    try:
        return draw_views(item.key, decode_image(data), rows, patch_size)
    except ContentError as error:
        return Fault(item.key, item.members.get(field), "decode", str(error))
