"""Threads for what waits: many calls at once, and an iterator that works ahead of who uses it."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

# A store answers in tens of milliseconds.
THREADS = 32
_QUEUED = 1024

T = TypeVar("T")
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def map_threads(call: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    """`call` of every item on a pool of threads, results in order; the first exception ends it."""
    pending: Sequence[_Item] = list(items)
    if not pending:
        return []
    results: list[_Result] = []
    pool = ThreadPoolExecutor(min(THREADS, len(pending)), thread_name_prefix="store")
    try:
        # A call that waits in the queue takes as much memory as its result.
        for start in range(0, len(pending), _QUEUED):
            results += pool.map(call, pending[start : start + _QUEUED])
    finally:
        # Without waiting: where a signal stops the run, a thread may be reading a shard for minutes.
        pool.shutdown(wait=False, cancel_futures=True)
    return results


class Prefetch(Generic[T]):
    """The items of an iterator, made on a thread, ahead of who takes them.

    At most `depth` of them wait, the one being made included; with `weight`, none is made while those that wait weigh
    `most` or more. What the iterator raises is raised where the item is asked for, after all items before it. `close`,
    or leaving the context, stops the thread after the item it is making, and closes the iterator there if it is a
    generator.
    """

    def __init__(
        self,
        items: Iterator[T],
        *,
        depth: int,
        name: str,
        weight: Callable[[T], int] = lambda item: 0,
        most: float = math.inf,
    ) -> None:
        if depth < 1:
            raise ValueError(f"nothing can be made {depth} items ahead")
        self._items, self._depth = items, depth
        self._weight, self._most = weight, most
        self._waiting: deque[T] = deque()
        self._waiting_weight = 0
        self._changed = threading.Condition()
        self._closed = False
        self._ended = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ended or self._closed)
            if self._waiting and not self._closed:
                item = self._waiting.popleft()
                self._waiting_weight -= self._weight(item)
                self._changed.notify_all()
                return item
            error, self._error = self._error, None
        if error is not None and not self._closed:
            raise error
        raise StopIteration

    def __enter__(self) -> Prefetch[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self, *, wait: bool = True) -> list[T]:
        """Stop the thread, wait for it if asked, and give back what nobody took; safe to call twice."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if wait:
            self._thread.join()
        with self._changed:
            left = list(self._waiting)
            self._waiting.clear()
        return left

    def _work(self) -> None:
        try:
            while self._has_room():
                try:
                    item = next(self._items)
                except StopIteration:
                    break
                with self._changed:
                    self._waiting.append(item)
                    self._waiting_weight += self._weight(item)
                    self._changed.notify_all()
                # Else the item would live on here while the next one is made.
                del item
        except BaseException as error:
            self._error = error
        finally:
            # Where the iterator waits for another thread, that one is stopped as well.
            self._close_items()
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _close_items(self) -> None:
        close = getattr(self._items, "close", None)
        if close is not None:
            try:
                close()
            except BaseException as error:
                self._error = self._error or error

    def _has_room(self) -> bool:
        """Wait until an item may be made; False when none is wanted any more."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._closed or (len(self._waiting) < self._depth and self._waiting_weight < self._most)
                )
            )
            return not self._closed
