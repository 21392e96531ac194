"""A command is never silent for long: where nothing else is said, a line says what is waited for."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import TextIO

from patchsieve.pipeline import shown
from patchsieve.pipeline.runs.log import is_json_log, log_event
from patchsieve.pipeline.shown import say
from patchsieve.pipeline.units import duration

FIRST_S, EVERY_S = 1.5, 9.0
"""Seconds of silence after which the first line comes, and each further one."""

QUIET = "PATCHSIEVE_QUIET"
"""Set in the environment, it turns these lines off."""

_doing: list[str] = []


@contextlib.contextmanager
def doing(what: str) -> Iterator[None]:
    """Name what is waited for while the block runs: `starting Ray`; empty where nothing is, as between two ticks."""
    _doing.append(what)
    try:
        yield
    finally:
        _doing.remove(what)


@contextlib.contextmanager
def never_silent(
    *, first_s: float = FIRST_S, every_s: float = EVERY_S, file: TextIO | None = None
) -> Iterator[None]:
    """While the block runs, say what is waited for whenever nothing was said for a while.

    On standard error, or as an event of a JSON log. One thread, which ends with the block.
    """
    if os.environ.get(QUIET):
        yield
        return
    ended = threading.Event()
    began = time.monotonic()

    def watch() -> None:
        limit = first_s
        while not ended.wait(max(0.05, limit - (time.monotonic() - max(began, shown.last_said())))):
            if time.monotonic() - max(began, shown.last_said()) < limit:
                continue
            limit = every_s
            if _doing and not _doing[-1]:
                continue
            what, passed = _doing[-1] if _doing else "loading libraries", time.monotonic() - began
            if is_json_log():
                log_event("waiting", {"for": what, "seconds": round(passed, 1)})
                shown.spoke()
            else:
                say(f"{shown.clock()}  {what} (after {duration(passed)})", file=file or sys.stderr)

    thread = threading.Thread(target=watch, name="never silent", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
