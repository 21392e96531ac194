"""Training from tables in an object store into an object store, by its workers' code, while the store has troubles."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from patchsieve.jobs.train import main
from patchsieve.pipeline import storage
from patchsieve.pipeline.errors import InfrastructureError, UserError
from patchsieve.ranker.model.checkpoint import load_ranker
from patchsieve.ranker.train.plan import TrainPlan, make_plan
from patchsieve.ranker.train.progress import outcome, read_curve
from patchsieve.ranker.train.record import begun
from tests.helpers.impatient import impatient_s3
from tests.helpers.pixel_tables import write_pixel_table
from tests.helpers.servers import S3Store, Trouble
from tests.ranker.learning.test_training import config_for
from tests.ranker.train.test_loop import SETTINGS, fit

pytestmark = pytest.mark.usefixtures("plotted")

BUSY = Trouble("status", status=503)
TABLE = "GET labels/scores/a.parquet"


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Store]:
    """A store with one table."""
    with impatient_s3(monkeypatch) as store:
        local = write_pixel_table(tmp_path / "a.parquet", images=range(40), views=2)
        storage.commit_file(Path(local), store.url("labels/scores/a.parquet"), run_id="r")
        yield store


def plan_for(tables: str, out: str) -> TrainPlan:
    config = config_for(tables, Path("unused"), **{**SETTINGS, "views_per_image": 4})
    return make_plan(dataclasses.replace(config, out=out))


def test_a_store_that_breaks_off_changes_nothing(s3: S3Store, tmp_path: Path) -> None:
    here = str(tmp_path / "ranker")
    fit(plan_for(str(tmp_path / "a.parquet"), here))
    out = s3.url("ranker")
    assert begun(out) is None
    s3.troubles = [
        ("GET .*list-type.*labels", BUSY),
        ("HEAD labels", BUSY),
        (TABLE, BUSY),
        (TABLE, Trouble("reset", 500)),
        (TABLE, Trouble("cut", 500)),
        (TABLE, Trouble("slow")),
        (TABLE, Trouble("stall", 500)),
        ("PUT ranker/training.json", BUSY),
        ("PUT ranker/ranker-", BUSY),
        ("PUT ranker/ranker-", Trouble("reset", 0)),
        ("GET ranker/curve.csv", Trouble("cut", 5)),
    ]
    fit(plan_for(s3.url("labels"), out))
    assert load_ranker(out).digest == load_ranker(here).digest
    assert load_ranker(f"{out}/last").digest == load_ranker(f"{here}/last").digest
    ours, theirs = (
        [(point["step"], point["loss"], point["agreement"]) for point in read_curve(folder)]
        for folder in (out, here)
    )
    assert ours == theirs
    assert outcome(out, shown=out)[1].endswith(out)
    assert s3.troubles == []


def test_a_store_that_stays_away_is_told_in_one_line(
    s3: S3Store, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    plan = plan_for(s3.url("labels"), s3.url("ranker"))
    s3.forever = {TABLE: Trouble("reset", 100)}
    with pytest.raises(InfrastructureError, match=r"reading s3://test-bucket/labels/scores/a\.parquet"):
        fit(plan)
    assert not storage.exists(s3.url("ranker/config.json"))
    with caplog.at_level("DEBUG"), pytest.raises(SystemExit) as ended:
        main([s3.url("labels"), "--out", s3.url("ranker")])
    assert ended.value.code == 1
    shown = capsys.readouterr()
    (line,) = shown.err.splitlines()
    assert line.startswith("patchsieve train: reading s3://test-bucket/labels/scores/a.parquet")
    assert "test-secret-key" not in shown.out + shown.err + caplog.text


def test_tables_that_are_not_there_any_more_and_places_that_are_not_written_to(
    s3: S3Store, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_for(s3.url("labels"), s3.url("ranker"))
    storage.remove(s3.url("labels/scores/a.parquet"))
    with pytest.raises(UserError, match=r"a\.parquet is gone: it was there when training was planned"):
        fit(plan)
    with pytest.raises(SystemExit) as ended:
        main([s3.url("labels"), "--out", s3.url("ranker")])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "s3://test-bucket/labels" in line
    with pytest.raises(UserError, match="cannot write to http://"):
        storage.arrow_filesystem("http://127.0.0.1:9/ranker")
