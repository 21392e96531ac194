"""Runs whose output is taken from them: mounted read-only, or taken over while they are suspended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from patchsieve.pipeline.output import owner
from patchsieve.pipeline.output.folder import OutputFolder
from patchsieve.pipeline.tables.reader import read_scores
from patchsieve.pipeline.tables.schema import SCORES
from tests.faults import suspended
from tests.faults.read_only import NOT_PERMITTED
from tests.helpers.checkout import ROOT
from tests.helpers.tables import shard_record, write_table
from tests.pipeline.output.killed_run import CONTENTS, IDENTITY, shards, tree, without_run_id

# Processes by themselves: it is they that are stopped, not one that waits for a fork.
ENVIRONMENT = {**os.environ, "PATCHSIEVE_ZYGOTE": ""}


def test_an_output_that_becomes_read_only_costs_the_run_and_nothing_else(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.faults.read_only", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode == NOT_PERMITTED:
        pytest.skip("mounting takes a privilege that these tests do not have")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert len(told) > 5
    expected = without_run_id(tree(tmp_path / str(len(told))))
    for step, said in enumerate(told, 1):
        if said:
            assert said.startswith("UserError: cannot write")
            assert "Read-only file system" in said
            assert "\n" not in said
        assert without_run_id(tree(tmp_path / str(step))) == expected
        assert not list((tmp_path / str(step)).rglob("*.tmp"))


@pytest.mark.parametrize("instant", suspended.INSTANTS)
def test_a_run_that_wakes_after_another_took_its_output_takes_nothing_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instant: str
) -> None:
    out, shard = tmp_path / "out", shards()["healed"]
    record = shard_record(shard, CONTENTS["healed"])
    tables = [write_table(tmp_path / f"{name}.parquet", record, run_id=name) for name in ("run-1", "run-2")]
    command = [sys.executable, "-m", "tests.faults.suspended", str(out), str(tables[0]), instant]
    first = subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout is not None
    try:
        state = os.waitid(os.P_PID, first.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        assert state is not None
        assert state.si_code == os.CLD_STOPPED
        monkeypatch.setattr(owner, "STALE_S", 0.3)
        monkeypatch.setattr(owner, "_POLL_S", 0.01)
        second = OutputFolder(str(out), SCORES, run_id="run-2")
        second.acquire(heartbeat=False)
        assert second.plan([shard], IDENTITY).todo == [shard]
        second.commit(shard, tables[1], None)
        rows = read_scores(str(out)).drop_columns("shard")
        os.kill(first.pid, signal.SIGCONT)
        told = json.loads(first.stdout.readline())
        # One of the two goes on, and the other knows.
        assert second._owner.beat() == (instant != "heartbeat")
        assert (told["lost_to"], second.lost_to) == (
            ("", f"run run-1 on {os.uname().nodename} (process {first.pid})")
            if instant == "heartbeat"
            else (f"run run-2 on {os.uname().nodename} (process {os.getpid()})", "")
        )
        # What the other run tidied away is not committed half.
        assert ("removed meanwhile" in told["told"]) == (instant == "name")
        first.communicate(timeout=60)
        assert first.returncode == 0
        assert (out / "owner.json").exists() == (instant != "heartbeat")
        second.release()
        assert second.plan([shard], IDENTITY).todo == []
        assert read_scores(str(out)).drop_columns("shard").equals(rows)
        assert list(tree(out)) == [f"scores/{shard.id}.parquet"]
    finally:
        first.kill()
        first.communicate()
