"""A call that is given up after so much processor time: nothing can end the library that a thread is in."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from patchsieve.pipeline.errors import ContentError

CPU_SECONDS = 60
"""Processor time that an image may take; one of 100 megapixels takes three."""

T = TypeVar("T")


def bounded(call: Callable[[], T], *, seconds: float = CPU_SECONDS) -> T:
    """The result of the call, made on a thread of its own; ContentError where that takes more processor time.

    The thread is then left to itself. Processor time, since an image is not to be blamed for a busy machine.
    """
    ended: Future[T] = Future()
    clock: Future[int] = Future()

    def work() -> None:
        clock.set_result(time.pthread_getcpuclockid(threading.get_ident()))
        try:
            ended.set_result(call())
        except BaseException as error:
            ended.set_exception(error)

    threading.Thread(target=work, name="decode one image", daemon=True).start()
    left = seconds
    while True:
        try:
            return ended.result(timeout=left)
        except TimeoutError:
            if ended.done():
                return ended.result()  # its own, or it has just ended
        used = _cpu_seconds(clock.result())
        if used >= seconds:
            raise ContentError(f"decoding takes more than {seconds:g} s of processor time")
        left = max(seconds - used, 0.01)


def _cpu_seconds(clock: int) -> float:
    try:
        return time.clock_gettime(clock)
    except OSError:
        return 0.0  # the thread has just ended
