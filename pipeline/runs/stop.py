"""SIGINT and SIGTERM end a run within two seconds, whatever it is doing and whoever handles signals just then.

Two things make this more than a handler that raises. Python ignores an exception of a handler that happens to run
in a finaliser, or right after a fork, as when Ray starts its processes: the lock of logging, which every fork takes,
then stays held. And a thread that reads from a store cannot be interrupted at all. So a thread of its own hears of
every signal from the interpreter, and in the end it ends the process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)
STOP_S = 1.0
"""Seconds after which the main thread is no longer waited for, unless it is tidying up."""
END_S = 1.7
"""Seconds after which a run that was told to stop is ended as it is."""


class StopRequest:
    """Whether the run was told to stop. `signal`: by which signal, the first one counts; None while it was not."""

    def __init__(self, tidy_up: Callable[[signal.Signals], None], then: str = "") -> None:
        self.signal: signal.Signals | None = None
        self._then = then
        self._tidy_up = tidy_up
        # Held by the one thread that tidies up.
        self._tidying = threading.Lock()
        self._raised = False
        self._left = threading.Event()
        self._patience_s = STOP_S

    def note(self, number: int) -> None:
        """Take down a signal; other signals than the two of this module are none of our business."""
        if number in SIGNALS and self.signal is None:
            self.signal = signal.Signals(number)

    def check(self) -> None:
        """Raise KeyboardInterrupt if the run was told to stop: the one of the handler may have been lost."""
        if self.signal is not None:
            raise KeyboardInterrupt

    def accept(self) -> signal.Signals:
        """The main thread has caught KeyboardInterrupt and tidies up; returns the signal.

        It comes too late where the watching thread tidies up already, and does not return: two at it would leave what
        one of them was just writing.
        """
        if not self._tidying.acquire(blocking=False):
            threading.Event().wait()
        return self.signal or signal.SIGINT

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """In the block the main thread is neither waited for nor interrupted: `check` tells it afterwards.

        For a call in which an exception may come while a lock is held that tidying up needs.
        """
        self._patience_s = 0.0
        try:
            yield
        finally:
            self._patience_s = STOP_S

    def _handle(self, number: int, _frame: object) -> None:
        self.note(number)
        # Once, so that tidying up is not interrupted.
        first, self._raised = not self._raised, True
        if first and self._patience_s:
            raise KeyboardInterrupt

    def _watch(self, signals: socket.socket) -> None:
        """On a thread: `signals` gives a byte for each of them, and ends with the block."""
        while self.signal is None:
            numbers = signals.recv(64)
            if not numbers:
                return
            for number in numbers:
                self.note(number)
        last = threading.Timer(END_S, self._end, ("the next run tidies up",))
        last.daemon = True
        last.start()
        if not self._left.wait(self._patience_s) and self._tidying.acquire(blocking=False):
            self._tidy_up(self.signal)
            self._end("tidied up")
        self._left.wait()
        last.cancel()

    def _end(self, how: str) -> None:
        assert self.signal is not None
        os.write(2, f"stopped by {self.signal.name}, {how}{self._then}\n".encode())
        os._exit(128 + self.signal)


def stop_this_run() -> None:
    """Stop the run of this process as SIGTERM does; from any thread."""
    os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def stop_on_signals(tidy_up: Callable[[signal.Signals], None], *, then: str = "") -> Iterator[StopRequest]:
    """At the first SIGINT or SIGTERM in the block, raise KeyboardInterrupt in the main thread; ignore later ones.

    KeyboardInterrupt, because it is the one exception of a signal handler that Ray's calls pass on. Where it has not
    been caught and accepted after `STOP_S` seconds, `tidy_up` runs on another thread; after `END_S` seconds the process
    is ended in any case: what a run commits is whole at any moment. `then`: what the last line, of such an end, says
    beside. For the main thread only.
    """
    request = StopRequest(tidy_up, then)
    signals, interpreter = socket.socketpair()
    interpreter.setblocking(False)
    thread = threading.Thread(target=request._watch, args=(signals,), name="stop signals", daemon=True)
    thread.start()
    earlier_fd = signal.set_wakeup_fd(interpreter.fileno(), warn_on_full_buffer=False)
    earlier = {number: signal.signal(number, request._handle) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(earlier_fd)
        request._left.set()
        interpreter.close()
        thread.join()
        signals.close()
