"""This machine: its clocks and processes, as far as owning an output folder needs them, and what is installed."""

from __future__ import annotations

import dataclasses
import functools
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from patchsieve import __version__

VERSIONS_OF = ("torch", "torchvision", "timm", "pillow", "pyarrow", "ray", "numpy")


def process_start(pid: int) -> str | None:
    """When a process of this machine started, in ticks: None if there is none, "" if that is not told."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except (PermissionError, OverflowError):
        pass
    try:
        # The name in parentheses may hold spaces. State is field 3, threads are field 20, start time field 22.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    # A zombie has ended, its parent has only not asked yet; one with threads is still closing its files.
    return None if fields[0] in "ZX" and int(fields[17]) <= 1 else fields[19]


def library_versions() -> dict[str, str]:
    """Versions of patchsieve and of what its results depend on, for the record."""
    return {"patchsieve": __version__} | {name: version(name) for name in VERSIONS_OF}


@functools.cache
def process_space() -> str:
    """Within which process numbers mean one thing: this boot of the kernel and this container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """What an owner asks of its machine; tests put in their own."""

    host: str = dataclasses.field(default_factory=platform.node)
    space: str = dataclasses.field(default_factory=process_space)
    pid: int = dataclasses.field(default_factory=os.getpid)
    process_start: Callable[[int], str | None] = process_start
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    now: Callable[[], float] = time.time
