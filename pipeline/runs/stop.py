"""SIGINT and SIGTERM end a run within two seconds, whatever it is doing and whoever handles signals just then.

Three things make this more than a handler that raises. Ray puts its own handler of SIGTERM in place while it
starts. Python ignores an exception of a handler that happens to run in a finaliser, or right after a fork, as
when Ray starts its processes. And a thread that reads from a store cannot be interrupted at all. So a thread of
its own is told of every signal by the interpreter, and in the end it ends the process.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)
STOP_S = 1.0
"""Seconds after which the main thread is no longer waited for, unless it is tidying up."""
END_S = 1.7
"""Seconds after which a run that was told to stop is ended as it is."""
_REPEAT_S = 0.1


class StopRequest:
    """Whether the run was told to stop. `signal`: by which signal, the first one counts; None while it was not."""

    def __init__(self, tidy_up: Callable[[signal.Signals], None]) -> None:
        self.signal: signal.Signals | None = None
        self._tidy_up = tidy_up
        self._accepted = False
        self._tidying = threading.Lock()
        self._raised = False
        self._insisting = False

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
        if not self._accepted and not self._tidying.acquire(blocking=False):
            threading.Event().wait()
        self._accepted = True
        return self.signal or signal.SIGINT

    @contextlib.contextmanager
    def insist(self) -> Iterator[None]:
        """In the block, KeyboardInterrupt is raised again and again until the block is left.

        For calls in which one is likely to be lost, and which need no tidying up.
        """
        self._insisting = True
        try:
            yield
        finally:
            self._insisting = False

    def _handle(self, number: int, _frame: object) -> None:
        self.note(number)
        # Once, so that tidying up is not interrupted.
        if not self._accepted and (self._insisting or not self._raised):
            self._raised = True
            raise KeyboardInterrupt

    def _watch(self, told: socket.socket) -> None:
        """On a thread: `told` gives a byte for each signal, and ends when the run has ended."""
        while self.signal is None:
            numbers = told.recv(64)
            if not numbers:
                return
            for number in numbers:
                self.note(number)
        main = threading.main_thread().ident
        assert main is not None
        began = time.monotonic()
        while (passed := time.monotonic() - began) < (END_S if self._accepted else STOP_S):
            readable, _, _ = select.select([told], [], [], min(END_S - passed, _REPEAT_S))
            if readable and not told.recv(64):
                return
            if self._insisting and not readable:
                signal.pthread_kill(main, signal.SIGINT)
        last = threading.Timer(began + END_S - time.monotonic(), self._end, ("the next run tidies up",))
        last.daemon = True
        last.start()
        if self._tidying.acquire(blocking=False):
            self._tidy_up(self.signal)
            self._end("tidied up")

    def _end(self, how: str) -> None:
        assert self.signal is not None
        os.write(2, f"stopped by {self.signal.name}, {how}\n".encode())
        os._exit(128 + self.signal)


@contextlib.contextmanager
def stop_on_signals(tidy_up: Callable[[signal.Signals], None]) -> Iterator[StopRequest]:
    """At the first SIGINT or SIGTERM in the block, raise KeyboardInterrupt in the main thread; ignore later ones.

    KeyboardInterrupt, because it is the one exception of a signal handler that Ray's calls pass on. Where it has not
    been caught and accepted after `STOP_S` seconds, `tidy_up` runs on another thread; after `END_S` seconds the process
    is ended in any case: what a run commits is whole at any moment. For the main thread only.
    """
    request = StopRequest(tidy_up)
    told, tell = socket.socketpair()
    tell.setblocking(False)
    thread = threading.Thread(target=request._watch, args=(told,), name="stop signals", daemon=True)
    thread.start()
    earlier_tell = signal.set_wakeup_fd(tell.fileno(), warn_on_full_buffer=False)
    earlier = {number: signal.signal(number, request._handle) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(earlier_tell)
        tell.close()
        thread.join()
        told.close()
