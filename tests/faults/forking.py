"""Processes that are forks of this one: begun, waited for, killed. Threads of this process are not in them."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

_ended: dict[int, int] = {}


def fork(work: Callable[[], object], log: Path) -> int:
    """Do something in a process of its own, the leader of its group; returns its id."""
    process = os.fork()
    if process:
        _ended.pop(process, None)  # of an older one that had this number
        return process
    code = 1
    try:
        os.setsid()
        with log.open("ab", buffering=0) as out:
            for number in (1, 2):
                os.dup2(out.fileno(), number)
        work()
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
    finally:
        sys.stdout.flush()
        os._exit(code)


def ended(process: int) -> int | None:
    """The exit code of a fork, minus the signal that killed it; None while it runs."""
    if process not in _ended:
        found, status = os.waitpid(process, os.WNOHANG)
        if not found:
            return None
        _ended[process] = os.waitstatus_to_exitcode(status)
    return _ended[process]


def wait(process: int, seconds: float) -> int | None:
    """The exit code of a fork; None where it does not end in time."""
    limit = time.monotonic() + seconds
    while (code := ended(process)) is None and time.monotonic() < limit:
        time.sleep(0.02)
    return code


def kill(process: int) -> None:
    """Kill a fork that may have ended; it is waited for."""
    if ended(process) is None:
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        _ended[process] = os.waitstatus_to_exitcode(status)
