"""Working ahead on a thread: order, bound, exceptions, stopping."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from patchsieve.pipeline.threads import Prefetch


def test_items_come_in_order_and_end() -> None:
    with Prefetch(iter(range(50)), depth=3, name="numbers") as numbers:
        assert list(numbers) == list(range(50))
        assert next(numbers, None) is None


def test_no_more_than_depth_are_made_ahead() -> None:
    made = threading.Semaphore(0)
    count = 0

    def numbers() -> Iterator[int]:
        nonlocal count
        while True:
            count += 1
            made.release()
            yield count

    with Prefetch(numbers(), depth=2, name="numbers") as ahead:
        for taken in range(1, 6):
            assert next(ahead) == taken
            while made.acquire(blocking=False):
                pass
            assert count <= taken + 2
        # The two after the five taken are made without being asked for.
        while count < 7:
            assert made.acquire(timeout=20)
    assert count == 7


def test_none_is_made_while_those_that_wait_weigh_enough() -> None:
    made = threading.Semaphore(0)

    def weights() -> Iterator[int]:
        for weight in (3, 3, 1, 9, 1):
            made.release()
            yield weight

    with Prefetch(weights(), depth=10, name="weights", weight=lambda item: item, most=5) as ahead:
        # The third waits until the first is taken, the fourth, however heavy, is then made: less than five wait.
        for expected in (2, 0, 2, 0, 1):
            for _ in range(expected):
                assert made.acquire(timeout=20)
            next(ahead)
        assert list(ahead) == []


def test_what_nobody_took_is_given_back() -> None:
    full = threading.Event()

    def numbers() -> Iterator[int]:
        yield from range(3)
        full.set()

    ahead = Prefetch(numbers(), depth=5, name="numbers")
    assert next(ahead) == 0
    assert full.wait(20)
    assert ahead.close() == [1, 2]
    assert ahead.close() == []


def test_an_exception_comes_after_the_items_before_it() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    with Prefetch(broken(), depth=4, name="broken") as items:
        assert next(items) == 1
        with pytest.raises(OSError, match="the disk is gone"):
            next(items)
        assert list(items) == []


def test_closing_ends_the_thread_and_the_iterator() -> None:
    closed = threading.Event()

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 0
        finally:
            closed.set()

    def outer() -> Iterator[int]:
        with Prefetch(endless(), depth=1, name="inner") as inner:
            yield from inner

    stream = Prefetch(outer(), depth=1, name="outer")
    assert next(stream) == 0
    stream.close()
    stream.close()
    assert closed.is_set()
    assert not {"inner", "outer"} & {thread.name for thread in threading.enumerate()}
    assert list(stream) == []


def test_depth_must_be_positive() -> None:
    with pytest.raises(ValueError, match="0 items ahead"):
        Prefetch(iter([1]), depth=0, name="none")
