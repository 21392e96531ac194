"""Reads a shard on one thread and prepares its samples on a pool, ahead of the consumer and in shard order.

At the end it tells what the shard was: `ShardRecord`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from patchsieve.pipeline.shards.reader import Fault, Rejected, Sample, ShardReader
from patchsieve.pipeline.threads import Prefetch

MAX_BYTES = 256 * 2**20
"""Bytes of samples as read that wait in memory: no other sample is read while there are so many."""

T = TypeVar("T")


def bytes_held(item: Sample | Fault) -> int:
    """Bytes of the members that a sample, or what was refused of one, holds in memory."""
    if isinstance(item, Sample):
        return sum(map(len, item.fields.values()))
    return sum(len(data) for _, data in item.members) if isinstance(item, Rejected) else 0


class ShardFeed(Generic[T]):
    """What `prepare` makes of each sample or fault, in shard order.

    At most `ahead` samples, and about `MAX_BYTES` of them, wait. `position`: bytes of the archive whose samples were
    yielded; `samples`, `size`, `sha256` and `damaged` hold once it has ended.
    """

    def __init__(
        self,
        reader: ShardReader,
        prepare: Callable[[Sample | Fault], T],
        pool: ThreadPoolExecutor,
        ahead: int,
        *,
        takes: Callable[[str], bool] = lambda key: True,
    ) -> None:
        """`takes`: by its key, whether a sample is prepared at all; it counts either way."""
        self._reader, self._prepare, self._takes = reader, prepare, takes
        self._pool = pool
        self._closed = False
        self.samples = 0
        self.position = 0
        self.size = 0
        self.sha256 = ""
        self.damaged = False
        self._prefetch = Prefetch(
            self._read(),
            depth=ahead,
            name=f"read {reader.shard.id}",
            weight=lambda item: item[2],
            most=MAX_BYTES,
        )

    def record(self, quarantined: int) -> ShardRecord:
        """The shard as it was read, for its record file, once the feed has ended; see `ShardRecord`."""
        return ShardRecord(
            name=self._reader.shard.name,
            size=self.size,
            tag=self._reader.shard.tag,
            sha256=self.sha256,
            samples=self.samples,
            quarantined=quarantined,
            damaged=self.damaged,
        )

    def __iter__(self) -> Iterator[T]:
        for future, position, _ in self._prefetch:
            prepared = future.result()
            self.position = position
            yield prepared

    def close(self) -> None:
        """Stop reading and wait for the thread; safe to call twice."""
        self._closed = True
        for future, *_ in self._prefetch.close():
            future.cancel()

    def _read(self) -> Iterator[tuple[Future[T], int, int]]:
        """On a thread: what is being prepared, the place behind it in the archive, and its bytes as read."""
        with self._reader as reader:
            for item in reader:
                if self._closed:
                    return
                key = item.key if isinstance(item, Sample) else item.sample_key
                self.samples += key is not None
                if key is None or self._takes(key):
                    yield self._pool.submit(self._prepare, item), reader.position, bytes_held(item)
            self.size, self.sha256, self.damaged = reader.size, reader.sha256, reader.damaged


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """The shard that a record file stands for, as it was read.

    `size` in bytes; `tag` is the store's etag or modification time, "" where it tells none; `samples` counts
    all of them, `quarantined` those that gave no row because of a fault; `damaged`: the archive broke off.
    """

    name: str
    size: int
    tag: str
    sha256: str
    samples: int
    quarantined: int
    damaged: bool
