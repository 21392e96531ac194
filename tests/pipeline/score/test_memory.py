"""Memory does not grow with the length of a shard, with the number of shards, or much with their names."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from patchsieve.pipeline.shards.specs import expand_shards
from patchsieve.pipeline.teacher.build import save_teacher
from tests.helpers.memory_run import STATUS
from tests.helpers.photos import photo, write_shard
from tests.helpers.teachers import SMALL, random_teacher

LONG = 1000
SHORT = 50
MEGABYTE = 10**6


@pytest.mark.slow
@pytest.mark.skipif(not STATUS.exists(), reason="only Linux tells the peak of a process")
def test_scoring_takes_as_much_memory_for_a_long_shard_as_for_a_short_one(tmp_path: Path) -> None:
    # Kept by mistake, the long shard would take 75 MB as decoded images, 55 MB as views, and 6 MB as files.
    config = dataclasses.replace(SMALL, image_size=96, patch_size=16)
    teacher = str(tmp_path / "teacher.safetensors")
    save_teacher(random_teacher(config), teacher, name="small")
    files = [photo(seed, 150, 166, quality=70) for seed in range(5)]

    def shard(name: str, count: int) -> str:
        samples = [(f"{number:04d}", {"jpg": files[number % len(files)]}) for number in range(count)]
        return str(write_shard(tmp_path / f"{name}.tar", samples))

    shards = [
        *(shard(f"short-{number}", SHORT) for number in range(5)),
        shard("long", LONG),
        *(shard(f"later-{number}", SHORT) for number in range(8)),
    ]
    command = [sys.executable, "-m", "tests.helpers.memory_run", str(tmp_path / "out"), teacher, *shards]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    told = json.loads(done.stdout)
    peaks = [told[name][1] for name in shards]
    assert [told[name][0] for name in shards] == [SHORT * 2] * 5 + [LONG * 2] + [SHORT * 2] * 8
    # The rows of the long shard's table, 5 MB, fill no row group (64 MB) and stay in memory until its end.
    growth = {
        "by more shards": peaks[4] - peaks[0],
        "by a long one": peaks[5] - peaks[4],
        "by shards after it": peaks[-1] - peaks[5],
    }
    assert all(grown < 45 * MEGABYTE for grown in growth.values()), growth


def test_many_names_take_little_memory_each(tmp_path: Path) -> None:
    count = 20_000
    for number in range(count):
        (tmp_path / f"photos-{number:05d}.tar").touch()
    tracemalloc.start()
    try:
        shards = expand_shards([str(tmp_path / f"photos-{{00000..{count - 1}}}.tar")])
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(shards) == count
    # 100,000 of them then stay below a quarter of 500 MB.
    assert kept / count < 1000
    assert peak / count < 1250
