"""SIGINT, SIGTERM, SIGKILL and a second run: nothing is torn, and the next run goes on."""

from __future__ import annotations

import re
import signal
import tempfile
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from patchsieve.pipeline.storage import remove_dead_scratch
from tests.helpers.faults import Faults
from tests.helpers.forks import below
from tests.helpers.photos import photo_samples, write_shard
from tests.helpers.score_processes import leftovers, run_here, score_process
from tests.helpers.score_runs import rows_of, save_small_teacher, score_config, score_here


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_stopped_by_signals_with_a_second_run_refused_meanwhile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = save_small_teacher(tmp_path)
    shards = [
        write_shard(tmp_path / f"{number}.tar", photo_samples(8 - number, number, 64, 64))
        for number in range(3)
    ]
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    scratch.mkdir()
    config = score_config(shards, out, teacher)
    # An actor gets the third shard, the smallest, once it has committed the first.
    key = "photo-2-0002"
    # SIGINT as from a terminal: Ray's own processes get it, too.
    for number, group in ((signal.SIGTERM, False), (signal.SIGINT, True)):
        marks = tmp_path / number.name
        marks.mkdir()
        faults = Faults(folder=str(marks), hold=(key,), environment={"TMPDIR": str(scratch)})
        with score_process(config, tmp_path, faults) as run:
            run.wait_for(lambda: faults.marks(f"hold.{key}"), f"{key} is in hand")  # noqa: B023
            if number == signal.SIGTERM:
                assert run_here(config, tmp_path) == 2
                (line,) = [line for line in capsys.readouterr().err.splitlines() if "in use" in line]
                assert f"{out} is in use by run " in line
                assert f"(process {run.pid})" in line
            its_own = below(run.process.pid)
            assert run.stop(number, group=group) == 128 + number, run.output
        # By the main thread, or where that is held up for a second by the one that watches.
        assert re.search(rf"stopped by {number.name}(: |, tidied up)", run.output)
        assert "the next run tidies up" not in run.output
        assert leftovers(out) == []
        for table in (out / "scores").iterdir():
            pq.read_table(table)
        # Ray's agents try to reach what has ended for a minute, where the machine is busy.
        _gone, left = psutil.wait_procs(its_own, timeout=240)
        assert left == [], "Ray ends with the run"
        # An actor that ended after its driver leaves its folder to the next run.
        with monkeypatch.context() as patched:
            patched.setattr(tempfile, "tempdir", str(scratch))
            remove_dead_scratch()
        assert list(scratch.iterdir()) == []
    # Nobody tells the actor of this one, which holds a shard; the next run does not wait until it is gone.
    (tmp_path / "SIGKILL").mkdir()
    faults = Faults(folder=str(tmp_path / "SIGKILL"), hold=(key,), environment={"TMPDIR": str(scratch)})
    with score_process(config, tmp_path, faults) as run:
        run.wait_for(lambda: faults.marks(f"hold.{key}"), f"{key} is in hand")
        assert run.stop(signal.SIGKILL) == -9
    assert leftovers(out) == ["owner.json"]
    done = {table: table.stat().st_mtime_ns for table in (out / "scores").iterdir()}
    assert 1 <= len(done) < 3

    assert run_here(config, tmp_path) == 0
    assert all(table.stat().st_mtime_ns == written for table, written in done.items())
    score_here(score_config(shards, tmp_path / "expected", teacher))
    assert rows_of(out) == rows_of(tmp_path / "expected")
    assert leftovers(out) == []


@pytest.mark.ray
def test_stopped_while_ray_starts(tmp_path: Path) -> None:
    out = tmp_path / "out"
    shard = write_shard(tmp_path / "a.tar", photo_samples(2, 0, 64, 64))
    with score_process(score_config([shard], out, save_small_teacher(tmp_path)), tmp_path) as run:
        run.wait_for(lambda: list(run.ray_folder.glob("ray/session_*")), "Ray makes its session folder")
        assert run.stop(signal.SIGTERM) == 143, run.output
    assert leftovers(out) == []
