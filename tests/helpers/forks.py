"""Which process belongs to which, where many are forks of the zygote (quick_start)."""

from __future__ import annotations

import contextlib
import re

import psutil


def worker_of(pid: int) -> int:
    """The fork that works for a process, or the process itself."""
    fork = re.fullmatch(r"for (\d+)", psutil.Process(pid).name())
    return int(fork[1]) if fork else pid


def below(pid: int) -> list[psutil.Process]:
    """All processes that a process started, theirs, and the forks that work for them."""
    found = [psutil.Process(pid)]
    for process in found:  # which grows meanwhile
        with contextlib.suppress(psutil.NoSuchProcess):  # ended meanwhile
            found += process.children()
            fork = worker_of(process.pid)
            if fork != process.pid:
                found.append(psutil.Process(fork))
    return found[1:]


def above(pid: int) -> list[psutil.Process]:
    """The processes that started this one; for a fork, the one that it works for and those above that."""
    asked = [process for process in psutil.process_iter(["name"]) if process.info["name"] == f"for {pid}"]
    starter = asked[0] if asked else psutil.Process(pid).parent()
    return [starter, *above(starter.pid)] if starter is not None else []
