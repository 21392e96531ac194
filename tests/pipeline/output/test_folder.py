"""The output folder: settings fixed once, commits that a kill cannot tear, and what is cleaned up afterwards."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from patchsieve.pipeline import storage
from patchsieve.pipeline.errors import InfrastructureError, UserError
from patchsieve.pipeline.output import owner
from patchsieve.pipeline.output.folder import OutputFolder, new_run_id
from patchsieve.pipeline.part import Part
from patchsieve.pipeline.runs.status import read_status
from patchsieve.pipeline.shards.reader import Fault
from patchsieve.pipeline.tables.reader import read_scores
from patchsieve.pipeline.tables.schema import SCORES, row_fields, row_identity
from tests.helpers.checkout import ROOT
from tests.helpers.servers import S3Store
from tests.helpers.tables import CONFIG, TEACHER, make_shard, record_of, write_errors, write_table
from tests.pipeline.output import killed_run
from tests.pipeline.output.killed_run import tree, without_run_id

ROWS = row_fields(CONFIG, TEACHER.digest)
IDENTITY = row_identity(CONFIG, TEACHER.digest)
FAULTS = [Fault("photo-7", "photo-7.jpg", "decode", "truncated")]


# Settings.


def test_the_first_run_fixes_the_settings(tmp_path: Path) -> None:
    first = OutputFolder(str(tmp_path), SCORES, run_id="run-1")
    assert first.stored_config() is None
    adopted = first.adopt_config(ROWS, other={"threads": 2})
    stored = {"identity": IDENTITY, "rows": ROWS, "other": {"threads": 2}, "run_id": "run-1"}
    assert adopted == first.stored_config() == stored
    later = OutputFolder(str(tmp_path), SCORES, run_id="run-2").adopt_config(ROWS, other={"threads": 8})
    assert later == adopted


def test_other_rows_are_refused_by_every_field_that_differs(tmp_path: Path) -> None:
    OutputFolder(str(tmp_path), SCORES, run_id="run-1").adopt_config(ROWS, other={})
    before = tree(tmp_path)
    asked = {**ROWS, "mask_ratio": 0.75, "masks": "spread", "teacher": "f" * 64, "shade": 1}
    del asked["seed"]
    with pytest.raises(UserError) as refused:
        OutputFolder(str(tmp_path), SCORES, run_id="run-2").adopt_config(asked, other={})
    text = str(refused.value)
    for difference in (
        "mask_ratio: 0.9 -> 0.75",
        "masks: uniform -> spread",
        "seed: 0 -> not set",
        "shade: not set -> 1",
        f"teacher: {TEACHER.digest[:60]}... -> {'f' * 60}...",
    ):
        assert difference in text
    assert str(tmp_path) in text
    for same in ("removal", "views", "\n"):
        assert same not in text
    assert tree(tmp_path) == before


def test_of_runs_that_start_together_one_fixes_the_settings(tmp_path: Path) -> None:
    start, adopted, refused = threading.Barrier(6), [], []

    def adopt(seed: int) -> None:
        output = OutputFolder(str(tmp_path), SCORES, run_id=f"run-{seed}")
        start.wait()
        try:
            adopted.append(output.adopt_config({**ROWS, "seed": seed}, other={})["rows"]["seed"])
        except UserError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=adopt, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(adopted) == 1
    assert len(refused) == 5
    assert all(f"seed: {adopted[0]} -> " in text for text in refused)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"identity": "x"}',
        '{"rows": 1}',
        '{"rows": {}}',
        '{"identity": 1, "rows": {}}',
        "[" * 10**5,
    ],
)
def test_a_config_that_is_not_ours_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json is damaged, or not what it should be"):
        OutputFolder(str(tmp_path), SCORES, run_id="run-1").adopt_config(ROWS, other={})


def test_a_store_without_exclusive_creation_is_named_once(
    s3: S3Store, caplog: pytest.LogCaptureFixture
) -> None:
    s3.ignore_conditions = True
    owner._say_not_exclusive.cache_clear()
    url = s3.url("out")
    with caplog.at_level(logging.WARNING, "patchsieve"):
        output = OutputFolder(url, SCORES, run_id="run-1")
        output.acquire(heartbeat=False)
        output.adopt_config(ROWS, other={})
        with pytest.raises(UserError, match="seed: 0 -> 1"):
            OutputFolder(url, SCORES, run_id="run-2").adopt_config({**ROWS, "seed": 1}, other={})
        output.release()
    assert len([line for line in caplog.messages if "ignores the condition" in line]) == 1
    assert OutputFolder(url, SCORES, run_id="run-3").stored_config() == {
        "identity": IDENTITY,
        "rows": ROWS,
        "other": {},
        "run_id": "run-1",
    }


# Commits.


def test_a_whole_run_on_an_object_store(s3: S3Store, tmp_path: Path) -> None:
    url = s3.url("out")
    shard, bad = make_shard(b"good"), make_shard(b"bad", "/data/b.tar")
    output = OutputFolder(url, SCORES, run_id=new_run_id())
    output.acquire(heartbeat=False)
    identity = output.adopt_config(ROWS, other={})["identity"]
    assert output.plan([shard, bad], identity).todo == [shard, bad]
    write_errors(tmp_path / "errors.parquet", FAULTS, shard.name, run_id="run-1")
    record = record_of(b"good", quarantined=1)
    output.commit(
        shard, write_table(tmp_path / "a.parquet", record, faults=FAULTS), tmp_path / "errors.parquet"
    )
    output.record_failed(bad, 3, "it holds no samples")
    output.write_run({"state": "incomplete"}, shards=[shard, bad])
    output.release()

    again = OutputFolder(url, SCORES, run_id=new_run_id())
    plan = again.plan([shard, bad], identity)
    assert plan.todo == [bad]
    assert plan.done[shard.id].rows == 12
    assert read_scores(url).num_rows == 12
    status = read_status(url)
    assert (status.done, status.missing, status.failed, status.rows) == (1, 0, 1, 12)
    assert status.errors == {"decode: truncated": 1}
    assert status.failures == {"/data/b.tar": "it holds no samples"}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A folder with runs killed at every one of their changes, and how many there are."""
    base = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-m", "tests.pipeline.output.killed_run", str(base)]
    printed = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    ).stdout
    count, status = map(int, printed.split())
    assert status == 0
    assert count > 25
    return base, count


def test_a_kill_at_any_change_tears_nothing(killed: tuple[Path, int]) -> None:
    base, count = killed
    healed, worse = (killed_run.shards()[name] for name in ("healed", "worse"))
    whole = {(base / name).read_bytes() for name in ("old.parquet", "healed.parquet", "worse.parquet")}
    for step in range(1, count + 1):
        folder = base / str(step)
        for name, data in tree(folder).items():
            if name.endswith(".tmp"):
                continue
            if name.endswith(".json"):
                json.loads(data)
            elif name.startswith("scores/"):
                assert data in whole
            else:
                assert pq.read_table(folder / name).num_rows > 0
        assert (folder / "scores" / f"{healed.id}.parquet").exists()
        # A failed record beside a record file is younger than that: it went first.
        if (folder / "scores" / f"{worse.id}.parquet").exists():
            assert not (folder / "failed" / f"{worse.id}.json").exists()
        if (folder / "config.json").exists():
            # Errors are told only of the attempt whose table is there.
            table = (folder / "scores" / f"{healed.id}.parquet").read_bytes()
            status = read_status(str(folder))
            is_old = table == (base / "old.parquet").read_bytes()
            assert {"decode: truncated": 1}.items() <= status.errors.items() or status.done < 2
            assert ("archive: cut" in status.errors) == (is_old and healed.name not in _outdated(folder))
            assert not any("another attempt" in reason for reason in status.errors)


def _outdated(folder: Path) -> list[str]:
    runs = sorted((folder / "runs").glob("*.json"))
    changed = json.loads(runs[-1].read_text())["changed"] if runs else []
    return [shard.name for shard in killed_run.shards().values() if shard.id in changed]


def test_a_rerun_after_a_kill_ends_like_an_uninterrupted_run(killed: tuple[Path, int]) -> None:
    base, count = killed
    expected = tree(base / str(count + 1))
    assert sorted(expected) == sorted(
        [
            "config.json",
            *(f"scores/{killed_run.shards()[name].id}.parquet" for name in ("healed", "worse")),
            f"errors/{killed_run.shards()['worse'].id}.parquet",
            f"failed/{killed_run.shards()['lost'].id}.json",
        ]
    )
    for step in range(1, count + 1):
        folder = base / str(step)
        killed_run.play(base, folder)
        found = tree(folder)
        assert without_run_id(found) == without_run_id(expected)
        assert not list(folder.rglob("*.tmp"))
        assert not list(folder.glob("*.claim"))


def test_a_failed_commit_leaves_the_shard_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = make_shard(b"good")
    output = OutputFolder(str(tmp_path / "out"), SCORES, run_id="run-1")
    table = write_table(tmp_path / "a.parquet", record_of(b"good"))

    def store_is_full(*arguments: object, **options: object) -> None:
        raise InfrastructureError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(storage, "commit_file", store_is_full)
        with pytest.raises(InfrastructureError):
            output.commit(shard, table, None)
    assert output.plan([shard], IDENTITY).todo == [shard]
    output.commit(shard, table, None)
    assert output.plan([shard], IDENTITY).todo == []


def test_temporaries_of_dead_runs_are_removed(tmp_path: Path) -> None:
    for name in (".config.json.create.1.tmp", "scores/.a.parquet.run-0.2.tmp", "failed/.a.json.run-0.3.tmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"half")
    for name in ("notes.tmp", "scores/.notes"):
        (tmp_path / name).write_text("a user's own file")
    output = OutputFolder(str(tmp_path), SCORES, run_id="run-1")
    output.acquire()
    assert not output.lost_to
    output.release()
    assert list(tree(tmp_path)) == ["notes.tmp", "scores/.notes"]


def test_run_ids_tell_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 86_401.25)
    assert re.fullmatch(r"19700102T000001\.250000Z-[0-9a-f]{8}", new_run_id())
    assert re.fullmatch(r"19700102T000001\.250000Z-[0-9a-f]{8}-2-of-3", new_run_id(Part(2, 3)))


def test_run_ids_sort_by_time() -> None:
    ids = [new_run_id() for _ in range(200)]
    assert [name[:23] for name in ids] == sorted(name[:23] for name in ids)
    assert len(set(ids)) == 200
