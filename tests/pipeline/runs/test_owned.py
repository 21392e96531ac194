"""Outputs that runs lose: taken over, or removed under them."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from patchsieve.pipeline.errors import PatchsieveError
from patchsieve.pipeline.output.folder import OutputFolder
from patchsieve.pipeline.runs.config_file import config_to_yaml
from patchsieve.pipeline.runs.end import end_of_run
from patchsieve.pipeline.runs.owned import RunRecord
from patchsieve.pipeline.score.request import make_request
from patchsieve.pipeline.score_on_ray import run as score_run
from patchsieve.pipeline.tables.schema import SCORES
from patchsieve.ranker.prune.request import make_prune_request
from patchsieve.ranker.prune_on_ray import run as prune_run
from tests.helpers.photos import photo_samples, write_shard
from tests.helpers.prune_runs import prune_config
from tests.helpers.score_runs import Watched, save_small_teacher, score_config
from tests.helpers.tables import make_shard, shard_record, write_table


def score_in(folder: Path) -> None:
    config = score_config([folder / "in" / "a.tar"], folder / "out", save_small_teacher(folder))
    score_run.score(make_request(config), Watched(), settings=config_to_yaml(config))


def prune_in(folder: Path) -> None:
    config = prune_config([folder / "in" / "a.tar"], folder / "out", "baseline:variance")
    prune_run.prune(make_prune_request(config), Watched(), settings=config_to_yaml(config))


@pytest.mark.parametrize(
    ("run", "kind"),
    [(score_in, score_run._ScoreRun), (prune_in, prune_run._PruneRun)],
    ids=["score", "prune"],
)
def test_a_run_whose_output_another_one_took_stops_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Any, kind: type
) -> None:
    """Also while it waits for a worker that says nothing for a long time."""
    monkeypatch.setattr("patchsieve.pipeline.output.owner.HEARTBEAT_S", 0.02)
    write_shard(tmp_path / "in" / "a.tar", photo_samples(1, height=64, width=64))
    out = tmp_path / "out"
    before: dict[str, bytes] = {}

    def files() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in out.rglob("*") if path.is_file()}

    def taken_over(run: Any, *arguments: object) -> None:
        # Between two heartbeats: one that has just seen its own file writes that again.
        with run._output._owner.quiet:
            (out / "owner.json").write_text(json.dumps({"run_id": "another", "host": "elsewhere", "pid": 5}))
            before.update(files())
        threading.Event().wait(60)
        pytest.fail("it was not told to stop")

    monkeypatch.setattr(kind, "_work", taken_over)
    with pytest.raises(
        PatchsieveError,
        match=rf"^{out} was taken over by run another on elsewhere \(process 5\): this run stops$",
    ):
        run(tmp_path)
    assert files() == before
    assert json.loads(next((out / "runs").iterdir()).read_bytes())["state"] == "running"


def test_a_run_says_complete_of_what_is_there_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shards = [make_shard(b"content", f"/data/{name}.tar") for name in "ab"]
    output = OutputFolder(str(tmp_path / "out"), SCORES, run_id="run-1")
    record = RunRecord(output, score_config(["/data/a.tar"], tmp_path / "out", "tiny"), shards)
    record.acquire()
    for shard in shards:
        table = write_table(tmp_path / "a.parquet", shard_record(shard, b"content"))
        output.commit(shard, table, None)
    result: Any = SimpleNamespace(samples=3, quarantined=0, faults={}, damaged=False, failed=None)
    summary = end_of_run(
        run_id="run-1",
        state="complete",
        names={shard.id: shard.name for shard in shards},
        before={},
        results={shard.id: result for shard in shards},
        failures={},
        seconds=1.0,
        devices=(),
        taken_out={},
        good=6.0,
        max_bad=0.0,
        salvage=False,
    )
    assert record.end(summary, ()) == summary
    Path(output.record_url(shards[0])).unlink()
    ended = record.end(summary, ())
    output.release()
    assert (ended.state, ended.exit_code, ended.done, ended.missing) == ("incomplete", 1, 1, ["/data/a.tar"])
    written = json.loads((tmp_path / "out" / "runs" / "run-1.json").read_bytes())
    assert (written["state"], written["missing"]) == ("incomplete", ["/data/a.tar"])
    assert "1 records are gone that were there: run again" in caplog.text
