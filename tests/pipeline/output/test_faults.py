"""Faults of a shard go to their file as they come: what is kept of them does not grow with their number or names."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from patchsieve.pipeline.output.faults import FaultLog, read_errors
from patchsieve.pipeline.shards.reader import Fault

COUNT = 6_000
NAME = "n" * 4000


def test_many_long_names_take_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("patchsieve.pipeline.output.faults._REASONS_COUNTED", COUNT - 2000)
    path = tmp_path / "errors.parquet"
    tracemalloc.start()
    with FaultLog(path, "a.tar", run_id="run-1") as log:
        for number in range(COUNT):  # 72 MB of text
            name = f"{number}{NAME}"
            log.add(Fault(name, f"{name}.jpg", "sample", f"{name}: a link"))
        assert log.finish() == path
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60_000_000
    assert (log.count, log.samples, log.reasons()["other reasons"]) == (COUNT, COUNT, COUNT - 20)
    assert pq.read_metadata(path).num_rows == COUNT
    counted = read_errors(str(path), log.summary["digest"])
    assert counted is not None
    assert counted.total() == COUNT


def test_no_fault_makes_no_file(tmp_path: Path) -> None:
    with FaultLog(tmp_path / "errors.parquet", "a.tar", run_id="run-1") as log:
        assert log.finish() is None
    assert list(tmp_path.iterdir()) == []
