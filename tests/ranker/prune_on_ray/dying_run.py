"""`python -m tests.ranker.prune_on_ray.dying_run MARKS ARGUMENTS...`: prune, and die when a worker comes so far.

A worker is what `patchsieve prune` sends to Ray, with a fault; `PATCHSIEVE_TEST_MOMENT` names the fault's moment.
"""

from __future__ import annotations

import fnmatch
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from patchsieve.jobs.prune import main
from patchsieve.ranker.prune import ranking as prune_ranking
from patchsieve.ranker.prune.sample import prepare_sample
from patchsieve.ranker.prune_on_ray import waves as ray_prune
from patchsieve.ranker.prune_on_ray.worker import PruneWorker

MOMENT = "PATCHSIEVE_TEST_MOMENT"


def faulty_worker(victim: int, marks: Path, *, key: str = "", before: str = "") -> type[PruneWorker]:
    """A worker that once kills the process `victim` (0: its own) and goes no further.

    It does so when it comes to a sample of the key `key`, or just before it gives a file its name that fits `before`.
    A file in the folder `marks` says that it did.
    """

    def kill() -> None:
        (marks / "killed").touch()
        os.kill(victim or os.getpid(), signal.SIGKILL)
        threading.Event().wait()  # until Ray ends what a dead driver started

    def faulty(change: Callable[..., Any], comes: Callable[..., bool]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if comes(*arguments) and not (marks / "killed").exists():
                kill()
            return change(*arguments, **options)

        return call

    class Worker(PruneWorker):
        def __init__(self, order: Any) -> None:
            super().__init__(order)
            if key:
                prepare = faulty(prepare_sample, lambda item, *_: item.key == key)
                setattr(prune_ranking, "prepare_sample", prepare)  # noqa: B010 (no name of that module for mypy)
            if before:
                os.replace = faulty(os.replace, lambda _, target: fnmatch.fnmatch(os.fspath(target), before))

    return Worker


def run() -> None:
    """The job, with a fault that kills this process."""
    kind, _, what = os.environ[MOMENT].partition(":")
    worker = faulty_worker(os.getpid(), Path(sys.argv[1]), **{kind: what})
    setattr(ray_prune, "PruneWorker", worker)  # noqa: B010 (a class is no variable for the type checker)
    main(sys.argv[2:])


if __name__ == "__main__":
    run()
