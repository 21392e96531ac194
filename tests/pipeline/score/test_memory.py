"""Memory does not grow with the length of a shard, or with the number of shards."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks._fresh_process import STATUS
from patchsieve.pipeline.teacher.build import save_teacher
from tests.helpers.photos import photo, write_shard
from tests.helpers.teachers import SMALL, random_teacher

LONG = 600
SHORT = 30
MEGABYTE = 10**6


@pytest.mark.slow
@pytest.mark.skipif(not STATUS.exists(), reason="only Linux tells the peak of a process")
def test_scoring_takes_as_much_memory_for_a_long_shard_as_for_a_short_one(tmp_path: Path) -> None:
    # The long shard takes 30 MB more than a short one; with its images or views kept by mistake, 73 or 40.
    config = dataclasses.replace(SMALL, image_size=96, patch_size=16)
    teacher = str(tmp_path / "teacher.safetensors")
    save_teacher(random_teacher(config), teacher, name="small")
    files = [photo(seed, 150, 166, quality=70) for seed in range(5)]

    def shard(name: str, count: int) -> str:
        samples = [(f"{number:04d}", {"jpg": files[number % len(files)]}) for number in range(count)]
        return str(write_shard(tmp_path / f"{name}.tar", samples))

    shards = [
        *(shard(f"short-{number}", SHORT) for number in range(4)),
        shard("long", LONG),
        *(shard(f"later-{number}", SHORT) for number in range(3)),
    ]
    command = [sys.executable, "-m", "tests.helpers.memory_run", str(tmp_path / "out"), teacher, *shards]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    told = json.loads(done.stdout)
    peaks = [told[name][1] for name in shards]
    assert [told[name][0] for name in shards] == [SHORT * 2] * 4 + [LONG * 2] + [SHORT * 2] * 3
    # The rows of the long shard's table, 3 MB, fill no row group (64 MB) and stay in memory until its end.
    growth = {
        "by more shards": peaks[3] - peaks[0],
        "by a long one": peaks[4] - peaks[3],
        "by shards after it": peaks[-1] - peaks[4],
    }
    assert all(grown < 38 * MEGABYTE for grown in growth.values()), growth
