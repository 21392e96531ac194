"""Reads a shard on one thread and prepares its samples on a pool, ahead of the consumer and in shard order.

At the end it tells what the shard was: `ShardRecord`.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from patchsieve.pipeline.shards.reader import Fault, Rejected, Sample, ShardReader

MAX_BYTES = 256 * 2**20
"""Bytes of samples as read that wait in memory; a single larger one still goes through."""

T = TypeVar("T")


def bytes_held(item: Sample | Fault) -> int:
    """Bytes of the members that a sample, or what was refused of one, holds in memory."""
    if isinstance(item, Sample):
        return sum(map(len, item.fields.values()))
    return sum(len(data) for _, data in item.members) if isinstance(item, Rejected) else 0


class ShardFeed(Generic[T]):
    """What `prepare` makes of each sample or fault, in shard order.

    At most `ahead` samples, and `MAX_BYTES` of them, are in memory. `position`: bytes of the archive whose samples
    were yielded; `samples`, `size`, `sha256` and `damaged` hold once it has ended.
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
        self._pool, self._ahead = pool, ahead
        self._queue: deque[tuple[Future[T], int, int]] = deque()
        self._held = self._held_bytes = 0
        self._changed = threading.Condition()
        self._closed = False
        self._error: BaseException | None = None
        self._ended = False
        self.samples = 0
        self.position = 0
        self.size = 0
        self.sha256 = ""
        self.damaged = False
        self._thread = threading.Thread(target=self._read, name=f"read {reader.shard.id}", daemon=True)
        self._thread.start()

    def record(self, faults: Sequence[Fault]) -> ShardRecord:
        """The shard as it was read, for its record file, once the feed has ended; `faults`: all there were."""
        return ShardRecord(
            name=self._reader.shard.name,
            size=self.size,
            tag=self._reader.shard.tag,
            sha256=self.sha256,
            samples=self.samples,
            quarantined=count_samples(faults),
            damaged=self.damaged,
        )

    def __iter__(self) -> Iterator[T]:
        while True:
            with self._changed:
                while not self._queue and not self._ended:
                    self._changed.wait()
                if not self._queue:
                    break
                future, position, weight = self._queue.popleft()
            prepared = future.result()
            self.position = position
            yield prepared
            with self._changed:
                self._held -= 1
                self._held_bytes -= weight
                self._changed.notify_all()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Stop reading and wait for the thread; safe to call twice."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        for future, _, _ in self._queue:
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
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _put(self, item: Sample | Fault) -> None:
        key = item.key if isinstance(item, Sample) else item.sample_key
        if key is not None:
            self.samples += 1
            if not self._takes(key):
                return
        weight = bytes_held(item)
        with self._changed:
            while not self._closed and self._full(weight):
                self._changed.wait()
            if self._closed:
                return
            future = self._pool.submit(self._prepare, item)
            self._queue.append((future, self._reader.position, weight))
            self._held += 1
            self._held_bytes += weight
            self._changed.notify_all()

    def _full(self, weight: int) -> bool:
        return self._held >= self._ahead or (self._held > 0 and self._held_bytes + weight > MAX_BYTES)


def count_samples(faults: Sequence[Fault]) -> int:
    """Samples that the faults are of: each has one, but for those of single views and of the archive itself."""
    whole = sum(fault.sample_key is not None and fault.stage != "score" for fault in faults)
    return whole + len({fault.sample_key for fault in faults if fault.stage == "score"})


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
