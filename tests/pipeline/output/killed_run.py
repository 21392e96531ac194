"""A small run on an output folder that kill -9 ends at a chosen change of the file system.

As a program (`python -m tests.pipeline.output.killed_run BASE`) it plays the run in BASE/1 so that the first change
is never made, in BASE/2 so that the second is not, and so on, each in a process of its own, until a run gets
through; it prints how many were killed. `prepare` makes what a folder holds before, `play` is the run.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from patchsieve.pipeline.output.folder import OutputFolder, new_run_id
from patchsieve.pipeline.shards.reader import Fault
from patchsieve.pipeline.shards.specs import Shard
from patchsieve.pipeline.tables.schema import SCORES, row_fields, row_identity
from tests.helpers.tables import CONFIG, TEACHER, make_shard, shard_record, write_errors, write_table

CONTENTS = {"healed": b"good now", "worse": b"bad now!", "lost": b"unreadable"}
FAULTS = [Fault("photo-7", "photo-7.jpg", "decode", "truncated")]
OLD_FAULTS = [Fault("photo-1", "photo-1.jpg", "decode", "too large"), Fault(None, None, "archive", "cut")]
IDENTITY = row_identity(CONFIG, TEACHER.digest)


def shards() -> dict[str, Shard]:
    """The shards of the run, by name."""
    return {name: make_shard(content, f"/data/{name}.tar", "tag-2") for name, content in CONTENTS.items()}


def prepare(base: Path, folder: Path) -> None:
    """An earlier output: `healed` had errors then, `worse` was given up. Files that `play` commits go to `base`."""
    healed, worse = shards()["healed"], shards()["worse"]
    old = make_shard(b"was bad", healed.url)
    write_table(
        base / "old.parquet", shard_record(old, b"was bad", quarantined=1), faults=OLD_FAULTS, run_id="run-0"
    )
    write_errors(base / "old-errors.parquet", OLD_FAULTS, healed.name, run_id="run-0")
    write_table(base / "healed.parquet", shard_record(healed, CONTENTS["healed"]))
    record = shard_record(worse, CONTENTS["worse"], quarantined=1)
    write_table(base / "worse.parquet", record, faults=FAULTS)
    write_errors(base / "worse-errors.parquet", FAULTS, worse.name, run_id="run-0")
    output = OutputFolder(str(folder), SCORES, run_id="run-0")
    output.commit(old, base / "old.parquet", base / "old-errors.parquet")
    output.record_failed(worse, 3, "the store was away")


def play(base: Path, folder: Path) -> None:
    """One whole run."""
    output = OutputFolder(str(folder), SCORES, run_id=new_run_id())
    output.acquire(heartbeat=False)
    output.adopt_config(row_fields(CONFIG, TEACHER.digest), other={"threads": 2})
    everything = shards()
    plan = output.plan(list(everything.values()), IDENTITY)
    output.write_run({"state": "running"}, shards=list(everything.values()), changed=plan.changed)
    for shard in plan.todo:
        name = Path(shard.name).stem
        if name == "lost":
            output.record_failed(shard, 3, "the store was away")
        else:
            output.commit(
                shard, base / f"{name}.parquet", base / "worse-errors.parquet" if name == "worse" else None
            )
    output.write_run({"state": "complete"}, shards=list(everything.values()))
    output.release()


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of an output but its runs and its cache, which never decide anything."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.parent.name not in ("runs", "cache")
    }


def without_run_id(files: dict[str, bytes]) -> dict[str, object]:
    """Contents by name, but for the run that failed records and settings name."""
    loaded = {name: json.loads(data) if name.endswith(".json") else data for name, data in files.items()}
    return {
        name: {key: value for key, value in content.items() if key != "run_id"}
        if isinstance(content, dict)
        else content
        for name, content in loaded.items()
    }


def kill_before(step: int) -> None:
    """Let the process die by SIGKILL just before the given change (1 = the first), counting from now."""
    made = 0

    def counted(change: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal made
            made += 1
            if made == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return change(*arguments, **options)

        return call

    # fsync too: the moment when a new file has its name, and perhaps not all of its bytes.
    for name in ("link", "replace", "unlink", "fsync"):
        setattr(os, name, counted(getattr(os, name)))


def main() -> None:
    base = Path(sys.argv[1])
    prepare(base, base / "prepared")
    step = 0
    while True:
        step += 1
        folder = base / str(step)
        shutil.copytree(base / "prepared", folder)
        process = os.fork()
        if process == 0:
            kill_before(step)
            play(base, folder)
            os._exit(0)
        _, status = os.waitpid(process, 0)
        if os.WIFEXITED(status):
            break
    print(step - 1, os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
