"""What a run came to: counts over earlier runs and this one, the exit code, and the lines a user reads."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from patchsieve.pipeline.output.records import Record
from patchsieve.pipeline.runs.end import LISTED
from patchsieve.pipeline.runs.status import FolderStatus, status_lines
from patchsieve.pipeline.score.messages import Progress, ShardResult
from patchsieve.pipeline.score_on_ray.summary import ScoreSummary, score_summary

VIEWS = 4


def result(shard_id: str, images: int = 10, bad: int = 0, **changes: Any) -> ShardResult:
    whole = ShardResult(
        shard_id=shard_id,
        samples=images + bad,
        quarantined=bad,
        images=images,
        rows=images * VIEWS,
        faults={"decode: cut": bad} if bad else {},
        damaged=False,
        failed=None,
        seconds=2.0,
        waited_s=0.5,
        table_bytes=1000,
        progress=Progress(),
    )
    return dataclasses.replace(whole, **changes)


def record(images: int = 10, bad: int = 0, **changes: Any) -> Record:
    whole = Record(
        identity="i",
        name="n",
        size=1,
        tag="t",
        sha256="s",
        rows=images * VIEWS,
        samples=images + bad,
        quarantined=bad,
        damaged=False,
        errors="",
        run_id="run-0",
    )
    return dataclasses.replace(whole, **changes)


def summary_of(*, results: list[ShardResult], **changes: Any) -> ScoreSummary:
    options: dict[str, Any] = {
        "run_id": "run-1",
        "state": "complete",
        "names": {key: f"/data/{key}.tar" for key in "abc"},
        "before": {},
        "results": {item.shard_id: item for item in results},
        "failures": {},
        "seconds": 10.0,
        "waited_share": 0.25,
        "devices": ["cpu x", "cpu x"],
        "taken_out": {},
        "views": VIEWS,
        "max_bad": 0.05,
        "salvage": False,
    }
    return score_summary(**{**options, **changes})


def test_a_complete_run_over_two() -> None:
    summary = summary_of(results=[result("b", 100, 2), result("c", 20)], before={"a": record(30)})
    assert (summary.state, summary.exit_code) == ("complete", 0)
    assert (summary.shards, summary.done, summary.done_before) == (3, 3, 1)
    assert (summary.samples, summary.bad, summary.rows) == (152, 2, 600)
    # Of this run alone.
    assert (summary.images, summary.views, summary.table_bytes) == (120, 480, 2000)
    assert summary.faults == {"decode: cut": 2}
    assert summary.devices == ["cpu x"]
    assert json.loads(json.dumps(dataclasses.asdict(summary)))["rows"] == 600
    text = "\n".join(summary.lines("/out"))
    for part in ("complete: 3 of 3 shards done (1 by earlier runs), 600 rows in /out", "48.0 views/s"):
        assert part in text
    for part in ("120 images", "teacher waited 25%", "2 of 152", "2  decode: cut", "2 kB of tables"):
        assert part in text


def test_devices_that_failed_are_named_and_a_complete_run_is_complete() -> None:
    fault = {"GPU 3 of node a (01234567)": "its device failed: CUDA error"}
    summary = summary_of(results=[result("a"), result("b"), result("c")], taken_out=fault)
    assert (summary.exit_code, summary.taken_out) == (0, fault)
    assert "taken out: GPU 3 of node a (01234567): its device failed: CUDA error" in summary.lines("/out")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"results": [result("a"), result("b")]}, "missing: /data/c.tar"),
        (
            {
                "results": [result("a"), result("b"), result("c", 0, 5, rows=0, failed="no row")],
                "failures": {"c": "no row"},
                "max_bad": 1.0,
            },
            "failed: /data/c.tar: no row",
        ),
        (
            {"results": [result("a"), result("b"), result("c", damaged=True)]},
            "damaged archive: /data/c.tar",
        ),
        (
            {"results": [result("a"), result("b")], "before": {"c": record(damaged=True)}},
            "damaged archive: /data/c.tar",
        ),
    ],
)
def test_what_makes_a_run_incomplete(changes: dict[str, Any], line: str) -> None:
    summary = summary_of(**changes)
    assert (summary.state, summary.exit_code) == ("incomplete", 1)
    assert line in summary.lines("/out")


def test_salvage_counts_damaged_archives_as_done() -> None:
    results = [result("a"), result("b"), result("c", damaged=True)]
    summary = summary_of(results=results, salvage=True)
    assert summary.exit_code == 0
    assert summary.damaged == ["/data/c.tar"], "it is told all the same"


@pytest.mark.parametrize(("bad", "code"), [(5, 0), (6, 1)])
def test_the_share_of_bad_samples_is_of_the_whole_run(bad: int, code: int) -> None:
    results = [result("b", 20, bad), result("c", 40)]
    assert summary_of(results=results, before={"a": record(35)}).exit_code == code
    assert summary_of(results=results, before={"a": record(35)}, max_bad=1.0).exit_code == 0


def test_samples_left_aside_do_not_hide_bad_ones() -> None:
    # A share of 2 %: of 1,000 samples 20 were tried, and half of them were bad.
    sampled = [dataclasses.replace(result(key, 10, 10), samples=1000) for key in "abc"]
    assert summary_of(results=sampled).exit_code == 1
    assert summary_of(results=sampled, max_bad=0.5).exit_code == 0


def test_bad_samples_alone_are_too_many_unless_all_may_be() -> None:
    failed = [result(key, 0, 3, rows=0, failed="no row") for key in "abc"]
    summary = summary_of(results=failed, failures=dict.fromkeys("abc", "no row"))
    assert (summary.exit_code, summary.bad, summary.samples, summary.rows) == (1, 9, 9, 0)
    assert "nothing scored" in "\n".join(summary.lines("/out"))


def test_a_stopped_run_keeps_its_code() -> None:
    summary = summary_of(results=[result("a")], state="stopped by SIGTERM", stopped_code=143)
    assert (summary.exit_code, summary.state) == (143, "stopped by SIGTERM")
    assert summary.missing == ["/data/b.tar", "/data/c.tar"]


def test_long_lists_are_cut() -> None:
    names = {f"k{number}": f"/data/{number:04d}.tar" for number in range(LISTED + 5)}
    lines = summary_of(results=[], names=names).lines("/out")
    assert sum(line.startswith("missing: /data/") for line in lines) == LISTED
    assert lines[-1] == "missing: ... and 5 more"


def test_status_lines() -> None:
    status = FolderStatus(
        url="/out",
        done=7,
        missing=2,
        failed=1,
        damaged=1,
        rows=12345,
        samples=4000,
        quarantined=3,
        errors={"decode: cut": 2, "sample: no image": 1},
        failures={"/data/x.tar": "no row"},
        lost={"/data/y.tar": "shards/y.tar is gone"},
        last_run={"run_id": "run-1", "state": "incomplete"},
        owner={"run_id": "run-2", "host": "node-7"},
        parts={"1/2": "complete", "2/2": "incomplete"},
    )
    text = "\n".join(status_lines(status))
    for part in ("7 done, 2 missing, 1 failed, 1 damaged", "12,345 of 4,000 samples, 3 of them"):
        assert part in text
    for part in (
        "missing : /data/y.tar: shards/y.tar is gone",
        "2  decode: cut",
        "/data/x.tar: no row",
        "2/2 incomplete",
        "run-1 incomplete",
        "run run-2 on node-7",
    ):
        assert part in text
