"""`python -m tests.pipeline.storage.creator WHAT URL ...`: a process that creates a file, or is killed as it does.

`killed URL commit|create STEP`: ends itself, as an out-of-memory kill would, instead of the named step of `os`.
`racer URL NUMBER`: creates the file as soon as it is told to, and prints whether it did.
"""

from __future__ import annotations

import os
import signal
import sys

from patchsieve.pipeline import storage


def _killed(url: str, action: str, step: str) -> None:
    setattr(os, step, lambda *given, **options: os.kill(os.getpid(), signal.SIGKILL))
    if action == "commit":
        storage.commit_bytes(b"new", url, run_id="run1")
    else:
        storage.create_exclusive(url, b"new")


def _racer(url: str, number: str) -> None:
    print("ready", flush=True)
    sys.stdin.readline()
    print(storage.create_exclusive(url, number.encode() * 10_000))


if __name__ == "__main__":
    what, *given = sys.argv[1:]
    if what == "killed":
        _killed(*given)
    else:
        _racer(*given)
