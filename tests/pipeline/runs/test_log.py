"""Lines of JSON: what a run tells of itself to those who collect logs."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import ray

from patchsieve.pipeline.runs.log import log_event, run_events
from tests.helpers.photos import photo_samples, write_shard
from tests.helpers.score_processes import run_here, wait_until
from tests.helpers.score_runs import footers_of, save_small_teacher, score_config


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_lines_hold_the_fields_of_the_process_and_the_events_own(capsys: pytest.CaptureFixture[str]) -> None:
    with run_events("json", job="score", run_id="run-1"):
        log_event("shard done", {"shard": "a.tar", "path": Path("/x")})
        log_event("shard failed", {"reason": "two\nlines"}, level=logging.ERROR)
        logging.getLogger("some.library").warning("slow: %d s", 3)
        logging.getLogger("some.library").info("not told")
    first, second, third = lines_of(capsys.readouterr().out)
    then = datetime.fromisoformat(first.pop("time"))
    assert abs((datetime.now(UTC) - then).total_seconds()) < 60
    assert first == {
        "level": "info",
        "event": "shard done",
        "job": "score",
        "run_id": "run-1",
        "shard": "a.tar",
        "path": "/x",
    }
    assert (second["level"], second["reason"]) == ("error", "two\nlines")
    assert (third["level"], third["event"], third["run_id"]) == ("warning", "slow: 3 s", "run-1")


def test_nothing_is_written_for_people_nor_after_the_run(capfd: pytest.CaptureFixture[str]) -> None:
    with run_events("text", run_id="run-1"):
        log_event("shard done", {}, level=logging.ERROR)
    with run_events("json", run_id="run-2"):
        pass
    log_event("shard done", {}, level=logging.ERROR)
    told = capfd.readouterr()
    assert (told.out, told.err) == ("", "")


NOTHING_THERE = "none of its 0 samples gave a row; 1 of 1 faults are «archive: the file is empty»"


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_driver_and_actors_tell_the_same_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = [write_shard(tmp_path / f"{n}.tar", photo_samples(3, n, 64, 64)) for n in range(2)]
    (empty := tmp_path / "empty.tar").touch()
    out = tmp_path / "out"
    config = score_config([*shards, empty], out, save_small_teacher(tmp_path), log_format="json")
    assert run_here(config, tmp_path) == 1

    # Standard output holds nothing else. (This Ray shows what its workers print, after a prefix.)
    events = lines_of("\n".join(line for line in capsys.readouterr().out.splitlines() if "pid=" not in line))
    (run_id,) = {event["run_id"] for event in events}
    assert {event["job"] for event in events} == {"score"}
    names = [event["event"] for event in events]
    assert (names[0], names[-1]) == ("run begun", "run ended")
    done = {event["shard"]: event for event in events if event["event"] == "shard done"}
    assert done.keys() == set(map(str, shards))
    assert all(event["rows"] == 6 and event["faults"] == {} for event in done.values())
    (failed,) = [event for event in events if event["event"] == "shard failed"]
    assert (failed["shard"], failed["reason"]) == (str(empty), NOTHING_THERE)
    (ready,) = [event for event in events if event["event"] == "actor ready"]
    assert {(event["actor"], event["node_id"]) for event in done.values()} == {
        (ready["actor"], ready["node_id"])
    }
    assert events[-1]["exit_code"] == 1
    assert {footer["provenance"]["run_id"] for footer in footers_of(out).values()} == {run_id}
    (record,) = (out / "failed").glob("*.json")
    assert json.loads(record.read_text())["run_id"] == run_id
    assert (out / "score.yaml").read_text().startswith(f"# run {run_id}\n")

    # The actor's own lines are in Ray's log of its process.
    context = ray.get_runtime_context()
    logs = Path(context.get_temp_dir(), context.get_session_name(), "logs")

    def of_actor() -> list[dict[str, Any]]:
        text = "".join(file.read_text(errors="replace") for file in logs.glob("worker-*.err"))
        return [json.loads(line) for line in text.splitlines() if line.startswith("{") and run_id in line]

    wait_until(lambda: len(of_actor()) == 7, "ready, and begun and ended for each shard")
    assert {event["actor"] for event in of_actor()} == {ready["actor"]}
    assert {event["shard"] for event in of_actor() if event["event"] == "shard ended"} == set(
        map(str, [*shards, empty])
    )
