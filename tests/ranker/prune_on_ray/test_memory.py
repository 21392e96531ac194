"""A shard larger than Ray's object store is pruned in bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks._fresh_process import STATUS
from tests.helpers.photos import photo, write_shard
from tests.helpers.prune_runs import members_of, save_small_ranker
from tests.ranker.prune_on_ray.memory_run import STORE

MEGABYTE = 10**6


def samples(count: int) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Small photos, each beside a megabyte that pruning leaves alone."""
    image, random = photo(1, 64, 64), np.random.default_rng(0)
    for number in range(count):
        yield f"{number:04d}", {"jpg": image, "bin": random.bytes(MEGABYTE)}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif(not STATUS.exists(), reason="only Linux tells the peak of a process")
def test_a_shard_larger_than_the_object_store(tmp_path: Path) -> None:
    ranker = save_small_ranker(tmp_path)
    short = write_shard(tmp_path / "in" / "a-short.tar", samples(15))
    long = write_shard(tmp_path / "in" / "b-long.tar", samples(150))
    assert long.stat().st_size > 1.5 * STORE
    command = [sys.executable, "-m", "tests.ranker.prune_on_ray.memory_run"]
    done = subprocess.run(
        [*command, str(tmp_path / "out"), ranker, str(short), str(long)],
        check=True,
        capture_output=True,
        text=True,
    )
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["exit_code"], told["images"]) == (0, 165)
    (first, peak_short), (second, peak_long) = told["peaks"]
    assert (first, second) == (0, 1)
    # In memory at a time: two batches as read, and two as written, of 1 MB each.
    assert peak_long - peak_short < 40 * MEGABYTE, told
    before, after = members_of(long), members_of(tmp_path / "out" / "shards" / "b-long.tar")
    assert [item for item in after if item[0].endswith(".bin")] == [
        item for item in before if item[0].endswith(".bin")
    ]
