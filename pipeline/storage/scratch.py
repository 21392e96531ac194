"""Local scratch folders that the next process removes when their owner was killed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_PREFIX = "patchsieve-scratch-"
HALF_MADE_S = 60.0
"""Seconds after which a folder without its lock belongs to nobody."""


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new folder in the machine's temporary directory, removed at the end.

    While in use it holds a locked file; the kernel drops the lock with the process, however that ends.
    """
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    lock = os.open(folder / "unlocked", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        # Where the file system knows no locks, nobody finds it dead either.
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        # Locked before it is called so: between the two another process would take the folder for a dead one's.
        os.rename(folder / "unlocked", folder / "lock")
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def remove_dead_scratch() -> int:
    """Remove this user's scratch folders on this machine that no living process uses; returns how many."""
    removed = 0
    for folder in Path(tempfile.gettempdir()).glob(_PREFIX + "*"):
        try:
            lock = os.open(folder / "lock", os.O_RDWR)
        except FileNotFoundError:
            # Being made or removed right now, or left so by a process that was killed over it.
            with contextlib.suppress(FileNotFoundError):
                if time.time() - folder.stat().st_mtime > HALF_MADE_S:
                    shutil.rmtree(folder, ignore_errors=True)
                    removed += 1
            continue
        except OSError:
            continue  # another user's
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue  # in use
        else:
            shutil.rmtree(folder, ignore_errors=True)
            removed += 1
        finally:
            os.close(lock)
    return removed
