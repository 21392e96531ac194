"""A process that ends itself when nothing moves in it: whoever started it tries again, or says so."""

from __future__ import annotations

import contextlib
import faulthandler
import signal
import threading
import time
from collections.abc import Callable, Iterator


class Watchdog:
    """Ends this process, after telling why, when work is in hand and nothing has moved for so many seconds.

    Where a library holds the interpreter's lock, so that nothing can be told, the process ends after twice the time.
    Where every thread is then goes to standard error.
    """

    def __init__(self, seconds: float, tell: Callable[[str], None]) -> None:
        """`tell` gets the reason, on a thread of the watchdog's own."""
        self._seconds, self._tell = seconds, tell
        self._in_hand = False
        self._moved_at = time.monotonic()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def moved(self) -> None:
        """Something came further; from any thread."""
        self._moved_at = time.monotonic()

    @contextlib.contextmanager
    def over(self) -> Iterator[None]:
        """In the block, work is in hand."""
        self.moved()
        self._in_hand = True
        try:
            yield
        finally:
            self._in_hand = False

    def _watch(self) -> None:
        while True:
            faulthandler.dump_traceback_later(2 * self._seconds, exit=True)
            time.sleep(self._seconds / 20)
            if self._in_hand and time.monotonic() - self._moved_at > self._seconds:
                try:
                    self._tell(f"no progress for {self._seconds:g} s")
                finally:
                    faulthandler.dump_traceback()
                    signal.raise_signal(signal.SIGKILL)
