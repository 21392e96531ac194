"""Views made in processes beside this one, so that decoding does not hold the lock that the GPU is fed under.

Beside 16 decoding threads an H100 was fed at half of its speed, whatever was launched and however; see
docs/performance.md. A process each also keeps what hostile images do to libraries away from the actor.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from socket import socketpair

from patchsieve.pipeline.errors import ContentError, InfrastructureError
from patchsieve.pipeline.images.bounded import CPU_SECONDS
from patchsieve.pipeline.row_config import RowConfig
from patchsieve.pipeline.score.decoder import from_message, to_message, views_from_message
from patchsieve.pipeline.scoring.views import View

_ENDED_BY_DATA = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL}


class Decoders:
    """A decoder process for each thread of a pool, started when the pool is made and again where one died."""

    def __init__(self, rows: RowConfig, patch_size: int, count: int) -> None:
        self._settings = to_message({"rows": dataclasses.asdict(rows), "patch_size": patch_size})
        self._own = threading.local()
        self._all: list[_Decoder] = []
        self._starting = threading.Lock()
        self.pool = ThreadPoolExecutor(count, "decode", self._start)
        # All of them at once, and now: they load their libraries while the teacher is made ready.
        together = threading.Barrier(count)
        for _ in range(count):
            self.pool.submit(together.wait)

    def views_of(self, sample_key: str, data: bytes) -> list[View]:
        """The views of an image file, on a thread of `pool`.

        Raises ContentError for an image that cannot be decoded, takes too long, or ends its decoder twice;
        InfrastructureError where a decoder ends otherwise.
        """
        for attempt in (1, 2):
            try:
                answer = self._own.decoder.ask(to_message({"key": sample_key}, data))
            except (EOFError, OSError) as error:
                self._after_death(attempt, error)
                continue
            head, rest = from_message(answer)
            if "fault" in head:
                raise ContentError(head["fault"])
            return views_from_message(sample_key, head, rest)
        raise AssertionError("the second death raises")

    def _after_death(self, attempt: int, error: Exception) -> None:
        code = self._own.decoder.end()
        self._start()
        if code == -signal.SIGPROF:
            raise ContentError(f"decoding takes more than {CPU_SECONDS} s of processor time") from error
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        if -code not in _ENDED_BY_DATA:
            raise InfrastructureError(f"a decoder process was ended by {name}") from error
        if attempt == 2:
            raise ContentError(f"it ends the process that decodes it by {name}") from error

    def _start(self) -> None:
        self._own.decoder = decoder = _Decoder(self._settings)
        with self._starting:
            self._all.append(decoder)

    def close(self) -> None:
        """End all of them; those at work finish their image first."""
        self.pool.shutdown(cancel_futures=True)
        for decoder in self._all:
            decoder.end()


class _Decoder:
    """One process and the connection to it; it ends by itself when this process does."""

    def __init__(self, settings: bytes) -> None:
        ours, theirs = socketpair()
        path = os.pathsep.join(dict.fromkeys(filter(None, sys.path)))
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "patchsieve.pipeline.score.decoder", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                # A thread each; and no card: what is decoded goes to the GPU by the actor alone.
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            )
        self._connection = Connection(ours.detach())
        self._connection.send_bytes(settings)
        self._ready = False

    def ask(self, message: bytes) -> bytes:
        """The answer to a message; EOFError or OSError where the process ended."""
        if not self._ready:
            self._connection.recv_bytes()
            self._ready = True
        self._connection.send_bytes(message)
        return self._connection.recv_bytes()

    def end(self) -> int:
        """Close the connection and wait; the exit code, negative for a signal."""
        self._connection.close()
        return self._process.wait()
