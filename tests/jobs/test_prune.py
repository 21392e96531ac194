"""What `patchsieve prune` does after its run."""

from __future__ import annotations

import dataclasses
import types
from pathlib import Path

import pytest

from patchsieve.jobs import prune as job
from patchsieve.ranker.prune_on_ray import run
from tests.helpers.photos import photo_samples, write_shard
from tests.helpers.prune_runs import prune_config, prune_here, save_small_ranker


@pytest.mark.parametrize(
    ("done", "code", "drawn"), [(1, 0, True), (1, 1, True), (0, 1, False), (1, 143, False)]
)
def test_the_sheet_is_drawn_where_a_shard_is_done_by_this_run_or_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: int, code: int, drawn: bool
) -> None:
    (tmp_path / "in").mkdir()
    shard = write_shard(tmp_path / "in" / "a.tar", photo_samples(2, height=60, width=70))
    config = prune_config([shard], tmp_path / "out", save_small_ranker(tmp_path / "ranker"))
    prune_here(config)
    # The end of a run on Ray that found this done and pruned nothing itself.
    end = types.SimpleNamespace(done=done, images=0, exit_code=code, run_id="run", lines=lambda out: [])
    monkeypatch.setattr(run, "prune", lambda *given, **options: end)
    sheet = tmp_path / "sheet.png"
    assert job.run(dataclasses.replace(config, sheet=str(sheet))) == code
    assert sheet.exists() == drawn
