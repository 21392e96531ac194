"""Parts of one output that work side by side, each in a process that is killed before one of its first changes.

    python -m tests.pipeline.output.killed_parts BASE

They begin again until all are through; says how many were killed. `BASE/parts` is then what `BASE/one` is, of one run.
A program of its own: forks of a process with threads, as the tests' may be by then, can break down by themselves.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from patchsieve.pipeline.output.folder import OutputFolder, new_run_id
from patchsieve.pipeline.part import Part
from patchsieve.pipeline.shards.specs import Shard
from patchsieve.pipeline.tables.schema import SCORES, row_fields, row_identity
from tests.helpers.tables import CONFIG, TEACHER, make_shard, shard_record, write_table
from tests.pipeline.output.killed_run import kill_before

PARTS = 8
MOST_KILLS = 70
ROWS, IDENTITY = row_fields(CONFIG, TEACHER.digest), row_identity(CONFIG, TEACHER.digest)


def shards(count: int) -> list[Shard]:
    return [make_shard(b"content", f"/data/{number:04d}.tar") for number in range(count)]


def acquired(folder: Path, part: Part | None, machine: Any = None) -> OutputFolder:
    output = OutputFolder(str(folder), SCORES, run_id=new_run_id(part), machine=machine)
    output.acquire(heartbeat=False)
    return output


def commit(output: OutputFolder, scratch: Path, shard: Shard) -> None:
    local = scratch / f"{shard.id}.{os.getpid()}.parquet"
    write_table(local, shard_record(shard, b"content"))
    output.commit(shard, local, None)
    local.unlink()


def play(scratch: Path, folder: Path, part: Part | None, everything: list[Shard]) -> None:
    """One whole run over a part."""
    output = acquired(folder, part)
    output.adopt_config(ROWS, other={})
    own = [shard for shard in everything if part is None or part.takes(shard.id)]
    output.write_run({"state": "running"}, shards=own)
    for shard in output.plan(own, IDENTITY).todo:
        commit(output, scratch, shard)
    output.keep_records(own)
    output.write_run({"state": "complete"}, shards=own)
    output.release()


def forked(work: Callable[[], None]) -> int:
    """The process that does it."""
    process = os.fork()
    if process == 0:
        work()
        os._exit(0)
    return process


def main() -> None:
    base, everything = Path(sys.argv[1]), shards(24)
    os.waitpid(forked(lambda: play(base, base / "one", None, everything)), 0)
    rng, kills = random.Random(7), 0
    running: dict[int, Part] = {}
    waiting = [Part(index, PARTS) for index in range(1, PARTS + 1)]
    while waiting or running:
        for part in waiting:
            step = rng.randint(1, 12) if kills + len(running) < MOST_KILLS else 0

            def killed(part: Part = part, step: int = step) -> None:
                kill_before(step)
                play(base, base / "parts", part, everything)

            running[forked(killed)] = part
        waiting.clear()
        process, status = os.wait()
        part = running.pop(process)
        code = os.waitstatus_to_exitcode(status)
        if code not in (0, -signal.SIGKILL):
            sys.exit(f"part {part} ended with {code}")
        if code:
            kills += 1
            waiting.append(part)
    print(kills)


if __name__ == "__main__":
    main()
