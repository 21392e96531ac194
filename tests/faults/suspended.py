"""A run that suspends itself in the middle of its work, until somebody lets it go on; then it says what it learnt.

As a program: `python -m tests.faults.suspended OUT TABLE INSTANT`. INSTANT: "commit", before the bytes of TABLE are
written; "name", before they have their name; "heartbeat", after it has seen that OUT is its own, before it says so
again. It keeps OUT until its input ends.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from patchsieve.pipeline import storage
from patchsieve.pipeline.errors import PatchsieveError
from patchsieve.pipeline.output import owner
from patchsieve.pipeline.output.folder import OutputFolder
from patchsieve.pipeline.tables.schema import SCORES
from tests.pipeline.output.killed_run import shards

INSTANTS = ("commit", "name", "heartbeat")


def suspended_before(module: Any, name: str, *, thread: str, quiet: threading.Lock | None) -> threading.Event:
    """Suspend this process before the next call of a function on a thread of that name; set once that call is over.

    `quiet`: held meanwhile.
    """
    call: Callable[..., Any] = getattr(module, name)
    over, begun = threading.Event(), threading.Event()

    def changed(*arguments: Any, **options: Any) -> Any:
        if begun.is_set() or threading.current_thread().name != thread:
            return call(*arguments, **options)
        begun.set()
        with quiet or threading.Lock():
            # To this very thread, which then goes no further; another one may take what the process is sent.
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
        try:
            return call(*arguments, **options)
        finally:
            over.set()

    setattr(module, name, changed)
    return over


def main() -> None:
    out, table, instant = sys.argv[1:]
    owner.HEARTBEAT_S = 0.02
    output = OutputFolder(out, SCORES, run_id="run-1")
    told = ""
    if instant == "heartbeat":
        over = suspended_before(storage, "commit_bytes", thread="owner heartbeat", quiet=None)
        output.acquire()
        over.wait()
    else:
        output.acquire()
        module, name = (storage, "commit_file") if instant == "commit" else (os, "replace")
        suspended_before(module, name, thread="MainThread", quiet=output._owner.quiet)
        try:
            output.commit(shards()["healed"], Path(table), None)
        except PatchsieveError as error:
            told = str(error)
        output._owner.lost.wait()
    print(json.dumps({"told": told, "lost_to": output.lost_to}), flush=True)
    sys.stdin.read()
    output.release()


if __name__ == "__main__":
    main()
