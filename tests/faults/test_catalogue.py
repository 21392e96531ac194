"""Every entry of the catalogue comes to what it must, in one line and in little memory, and runs nothing."""

from __future__ import annotations

import re
import tracemalloc
from pathlib import Path

import pytest

from tests.faults.catalogue import CATALOGUE, REFUSED, Entry
from tests.helpers.bad_samples import GOOD
from tests.helpers.photos import write_shard
from tests.helpers.score_runs import errors_of, rows_of, save_small_teacher, score_config, score_here
from tests.pipeline.images.test_costly_images import with_scans
from tests.pipeline.images.test_damaged_images import NO_IMAGES, resized_headers

MOST_BYTES = 64 * 2**20


def test_there_are_enough_and_no_two_of_one_name() -> None:
    assert len(CATALOGUE) >= 80
    assert len({entry.name for entry in CATALOGUE}) == len(CATALOGUE)


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry.name)
def test_an_entry_comes_to_what_it_must(entry: Entry, tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        said = entry.come_to(tmp_path)
    except REFUSED as error:
        said = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert re.search(entry.outcome, said), said
    assert "\n" not in said
    assert peak < MOST_BYTES
    assert not (tmp_path / "x").exists(), "it ran a command"


def test_all_hostile_images_in_one_shard_cost_no_good_sample(tmp_path: Path) -> None:
    hostile = [data for data, _ in NO_IMAGES] + list(resized_headers(30_000, 30_000).values())
    hostile.append(with_scans(GOOD["first"][0][1], 5000))
    samples = [(f"bad-{number:02d}", {"jpg": data}) for number, data in enumerate(hostile)]
    for number in range(0, len(samples) + 3, 3):
        samples.insert(number, (f"good-{number:02d}", {"jpg": GOOD["first"][0][1]}))
    good = [key for key, _ in samples if key.startswith("good")]
    shard = write_shard(tmp_path / "a.tar", samples)
    out = tmp_path / "out"
    (result,) = score_here(score_config([shard], out, save_small_teacher(tmp_path))).values()
    assert (result.failed, result.quarantined) == (None, len(hostile))
    assert sorted({key for _, key, _ in rows_of(out)}) == good
    assert {row["sample_key"] for row in errors_of(out)} == {key for key, _ in samples} - set(good)
