"""A disk that is full, for scratch and output alike: the attempt fails, nothing half-written is left, a rerun heals."""

from __future__ import annotations

import contextlib
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from patchsieve.pipeline.errors import PatchsieveError
from patchsieve.ranker.verify.config import VerifyConfig
from patchsieve.ranker.verify.run import verify
from tests.helpers.prune_runs import contents, save_small_ranker
from tests.helpers.score_processes import leftovers
from tests.helpers.score_runs import rows_of, save_small_teacher
from tests.ranker.verify.outputs import Run, pruned, scored, small_shards


@contextlib.contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """Every write beyond so many bytes of a file fails, in this process, as on a disk without room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def runs(folder: Path, shards: list[Path], kind: str) -> tuple[Run, Run]:
    """The same job into two outputs."""
    if kind == "score":
        teacher = save_small_teacher(folder)
        return scored(shards, folder / "out", teacher), scored(shards, folder / "expected", teacher)
    ranker = save_small_ranker(folder)
    return pruned(shards, folder / "out", ranker), pruned(shards, folder / "expected", ranker)


# Bytes at which a table, and a tar, of these shards is begun, half written, and nearly done.
@pytest.mark.parametrize("size", [0, 1000, 4000])
@pytest.mark.parametrize("kind", ["score", "prune"])
def test_a_full_disk_costs_the_attempt_and_nothing_else(
    tmp_path: Path, kind: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    run, undisturbed = runs(tmp_path, small_shards(tmp_path / "shards"), kind)
    with no_file_above(size), pytest.raises((OSError, PatchsieveError)):
        run()
    out = tmp_path / "out"
    assert not list(out.glob("*/*.parquet"))
    assert [name for name in leftovers(out) if "owner" not in name] == []
    assert list(scratch.glob("patchsieve*")) == []
    assert run() == undisturbed() == ["part-0.tar", "part-1.tar"]
    read = rows_of if kind == "score" else contents
    assert read(out) == read(tmp_path / "expected")
    assert verify(VerifyConfig(out=str(out))).sound
