"""A table several times larger than the memory for it streams through."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks._fresh_process import STATUS
from tests.helpers.tables import CONFIG, PATCH_BYTES, VISIBLE, record_of, write_table

MEGABYTE = 10**6
WINDOW = 4 * MEGABYTE
IMAGES = 1600


@pytest.mark.slow
@pytest.mark.skipif(not STATUS.exists(), reason="only Linux tells the peak of a process")
def test_a_table_larger_than_the_memory_for_it_streams_through(tmp_path: Path) -> None:
    table = write_table(
        tmp_path / "a.parquet",
        record_of(b"shard"),
        images=IMAGES,
        config=dataclasses.replace(CONFIG, views=4),
        group_bytes=2 * MEGABYTE,
    )
    size = table.stat().st_size
    assert size > 90 * MEGABYTE
    command = [sys.executable, "-m", "tests.ranker.batches.reading_run", str(table), str(WINDOW)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    told = json.loads(done.stdout)
    assert told["rows"] == 2 * (IMAGES * 4 // 32 * 32)
    assert told["pixels"] == told["rows"] * VISIBLE * PATCH_BYTES
    # Two windows, batches ahead and a row group as it is read: half of the table's size would be a leak.
    assert told["growth"] < size / 2, told
