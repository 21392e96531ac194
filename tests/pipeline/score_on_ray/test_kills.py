"""Runs that are killed at the worst moments, and the run after them."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest
import ray

from tests.helpers.faults import Faults
from tests.helpers.photos import photo_samples, write_shard
from tests.helpers.score_processes import leftovers, run_here, score_process, wait_until
from tests.helpers.score_runs import errors_of, rows_of, save_small_teacher, score_config, score_here

# What is killed just before it gets its name, in the order in which a run comes to it.
MOMENTS = ("owner.json", "config.json", "errors/half-bad-*.parquet", "scores/half-bad-*.parquet")


def in_use(folder: Path) -> bool:
    """Whether a process holds the lock of a scratch folder."""
    try:
        with (folder / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_killed_again_and_again_and_resumed_at_once_a_run_equals_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = save_small_teacher(tmp_path)
    half_bad = [*photo_samples(6, 1, 64, 64), ("text", {"jpg": b"no picture"})]
    shards = [
        write_shard(tmp_path / "half-bad.tar", half_bad),
        write_shard(tmp_path / "good.tar", photo_samples(3, 2, 64, 64)),
    ]
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    scratch.mkdir()
    config = score_config(shards, out, teacher, max_bad=0.5)
    here = {"TMPDIR": str(scratch)}
    address = ray.get_runtime_context().gcs_address
    for moment in MOMENTS:
        faults = Faults(folder=str(tmp_path), environment=here, crash_before=f"*/out/{moment}")
        with score_process(config, tmp_path, faults, RAY_ADDRESS=address) as run:
            assert run.end() == -9, run.output
        folder, name = (out / moment).parent, (out / moment).name
        assert list(folder.glob(f".{name}.*.tmp")), f"killed elsewhere than before {moment}\n{run.output}"
        assert not list(folder.glob(name))
        if moment != MOMENTS[0]:
            # The process that owned the folder is gone from this machine: nobody waits for its heartbeat.
            assert "taking over from" in run.output or moment == MOMENTS[1], run.output
            assert "watching" not in run.output
            assert (out / "owner.json").exists()
    assert list((out / "errors").glob("half-bad-*.parquet")), "errors file first, table last"
    assert list(scratch.glob("patchsieve-scratch-*")), "the killed actors had scratch folders"

    # Ray ends the actors of a killed driver a moment later; what a living process uses, nobody removes.
    wait_until(lambda: not any(map(in_use, scratch.iterdir())), "the killed drivers' actors to end")
    Faults(folder=str(tmp_path), environment=here).put_in_actors(monkeypatch)
    assert run_here(config, tmp_path) == 0
    score_here(score_config(shards, tmp_path / "expected", teacher, max_bad=0.5))
    assert rows_of(out) == rows_of(tmp_path / "expected")
    assert errors_of(out) == errors_of(tmp_path / "expected")
    assert leftovers(out) == []
    assert list(scratch.iterdir()) == []
