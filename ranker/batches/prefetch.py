"""An iterator that works ahead on a thread of its own."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """The items of an iterator, made on a thread; at most `depth` of them wait, the one being made included.

    What the iterator raises is raised where the item is asked for, after all items before it. `close`, or leaving the
    context, stops the thread after the item it is making, and closes the iterator there if it is a generator.
    """

    def __init__(self, items: Iterator[T], *, depth: int, name: str) -> None:
        if depth < 1:
            raise ValueError(f"nothing can be made {depth} items ahead")
        self._items, self._depth = items, depth
        self._ready: deque[T] = deque()
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
            self._changed.wait_for(lambda: self._ready or self._ended or self._closed)
            if self._ready and not self._closed:
                item = self._ready.popleft()
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

    def close(self) -> None:
        """Stop the thread, wait for it and drop what it made; safe to call twice."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        self._ready.clear()

    def _work(self) -> None:
        try:
            while self._room():
                try:
                    item = next(self._items)
                except StopIteration:
                    break
                with self._changed:
                    self._ready.append(item)
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

    def _room(self) -> bool:
        """Wait until an item may be made; False when none is wanted any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._ready) < self._depth)
            return not self._closed
