"""`killed_run.play` on an output that becomes read-only before each file that it writes, in mounts of its own.

As a program (`python -m tests.faults.read_only BASE`): BASE/N is mounted read-only before the N-th file is opened (no
kernel does it while one is open), then made writable again, and another process plays the run once more. It prints, as
JSON, what each run that met a read-only output said, or "" where it ended well, the last one; `NOT_PERMITTED` is its
exit code where it may not mount.
"""

from __future__ import annotations

import builtins
import ctypes
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from patchsieve.pipeline.errors import PatchsieveError
from tests.pipeline.output.killed_run import play, prepare

NOT_PERMITTED = 77
_NEW_MOUNTS = 0x20000
_READ_ONLY, _REMOUNT, _BIND, _ALL_BELOW, _PRIVATE = 1, 32, 4096, 16384, 1 << 18
_libc = ctypes.CDLL(None, use_errno=True)


def mount(folder: Path | str, flags: int) -> None:
    """Mount a folder on itself, or change how it is mounted."""
    place = os.fsencode(folder)
    if _libc.mount(place, place, None, flags, None):
        raise OSError(ctypes.get_errno(), "mount", str(folder))


def own_mounts() -> bool:
    """Let mounts from now on be seen by this process and its children alone; False where that is not permitted."""
    if _libc.unshare(_NEW_MOUNTS):
        return False
    try:
        mount("/", _ALL_BELOW | _PRIVATE)
    except OSError:
        return False
    return True


def read_only_before(step: int, folder: Path) -> None:
    """Mount the folder read-only just before this process opens the given new file (1 = the first)."""
    opened, call = 0, builtins.open

    def counted(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        nonlocal opened
        opened += "x" in mode
        if opened == step and "x" in mode:
            mount(folder, _BIND | _REMOUNT | _READ_ONLY)
        return call(file, mode, *arguments, **options)

    builtins.open = counted


def run(work: Callable[[], object], said: Path) -> None:
    """Do something in a process of its own; what it was refused is written down."""
    process = os.fork()
    if process == 0:
        try:
            work()
            said.write_text("")
        except PatchsieveError as error:
            said.write_text(f"{type(error).__name__}: {error}")
        finally:
            os._exit(0)
    os.waitpid(process, 0)


def main() -> None:
    base = Path(sys.argv[1])
    if not own_mounts():
        sys.exit(NOT_PERMITTED)
    prepare(base, base / "prepared")
    told: list[str] = []
    while not told or told[-1]:
        folder, said = base / str(len(told) + 1), base / "said"
        shutil.copytree(base / "prepared", folder)
        mount(folder, _BIND)

        def disturbed(folder: Path = folder, step: int = len(told) + 1) -> None:
            read_only_before(step, folder)
            play(base, folder)

        run(disturbed, said)
        told.append(said.read_text())
        mount(folder, _BIND | _REMOUNT)
        run(lambda folder=folder: play(base, folder), said)  # type: ignore[misc]
        assert said.read_text() == ""
    print(json.dumps(told))


if __name__ == "__main__":
    main()
