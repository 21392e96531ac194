"""Exit codes of a run over good and bad shards, what status says of it, and what --redo-errors does."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from patchsieve.jobs import score, status
from patchsieve.pipeline.shards.specs import shard_id
from tests.helpers.archives import archive
from tests.helpers.photos import photo, photo_samples, write_shard
from tests.helpers.score_runs import (
    errors_of,
    footers_of,
    rows_of,
    save_small_teacher,
    score_config,
    score_here,
)

pytestmark = pytest.mark.ray

FLAGS = ["--views=2", "--batch-size=4", "--precision=fp32", "--cpus-per-actor=1", "--max-actors=1"]
FLAGS += ["--gpus-per-actor=0"]


class BadRun(NamedTuple):
    """A run over four shards: `good`, `mixed` with bad samples, `cut` short, `labels` without images."""

    shards: dict[str, str]
    teacher: str
    out: str
    code: int
    output: str


def exit_code(job: Any, *arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        job.main([str(argument) for argument in arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.fixture(scope="module")
def bad_run(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> BadRun:
    folder = tmp_path_factory.mktemp("bad")
    teacher = save_small_teacher(folder)
    good = photo(1, 50, 60)
    mixed = [(f"k{i}", {"jpg": good}) for i in range(6)]
    mixed[3:3] = [("cut", {"jpg": good[:300]}), ("text", {"jpg": b"not found"}), ("bare", {"cls": b"1"})]
    members = [(f"c{i}.jpg", good) for i in range(3)]
    paths = {
        "good": write_shard(folder / "good.tar", photo_samples(4, height=50, width=60)),
        "mixed": write_shard(folder / "mixed.tar", mixed),
        "cut": folder / "cut.tar",
        "labels": write_shard(folder / "labels.tar", [("l1", {"cls": b"1"}), ("l2", {"cls": b"2"})]),
    }
    paths["cut"].write_bytes(archive(members)[: 2 * (512 + -(-len(good) // 512) * 512)])
    shards = {name: str(path) for name, path in paths.items()}
    out = str(folder / "out")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = exit_code(score, *shards.values(), "--out", out, "--teacher", teacher, *FLAGS)
    return BadRun(shards, teacher, out, code, printed.getvalue())


def again(run: BadRun, names: str, *flags: str) -> int:
    shards = [run.shards[name] for name in names.split()]
    return exit_code(score, *shards, "--out", run.out, "--teacher", run.teacher, *FLAGS, *flags)


def test_every_good_sample_has_its_rows_and_every_bad_one_its_line(bad_run: BadRun) -> None:
    rows = rows_of(bad_run.out)
    counts = {name: sum(key[0] == shard for key in rows) for name, shard in bad_run.shards.items()}
    assert counts == {"good": 8, "mixed": 12, "cut": 4, "labels": 0}
    errors = {(error["shard"], error["sample_key"]): error["stage"] for error in errors_of(bad_run.out)}
    shards = bad_run.shards
    assert errors == {
        (shards["mixed"], "cut"): "decode",
        (shards["mixed"], "text"): "decode",
        (shards["mixed"], "bare"): "sample",
        (shards["cut"], None): "archive",
        (shards["labels"], "l1"): "sample",
        (shards["labels"], "l2"): "sample",
    }


def test_the_run_says_what_is_wrong_and_exits_1(bad_run: BadRun) -> None:
    assert bad_run.code == 1
    assert "incomplete: 3 of 4 shards done" in bad_run.output
    assert "samples without a row: 5 of 17" in bad_run.output
    assert f"damaged archive: {bad_run.shards['cut']}" in bad_run.output
    assert f"failed: {bad_run.shards['labels']}: none of its 2 samples gave a row" in bad_run.output
    failed = Path(bad_run.out) / "failed" / f"{shard_id(bad_run.shards['labels'])}.json"
    record = json.loads(failed.read_text())
    assert (record["shard"], record["attempts"]) == (bad_run.shards["labels"], 1)
    assert not (Path(bad_run.out) / "scores" / f"{shard_id(bad_run.shards['labels'])}.parquet").exists()


def test_what_is_done_decides_the_exit_code_of_later_runs(
    bad_run: BadRun, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every shard named here is done, so that nothing is scored and Ray is not asked."""
    assert again(bad_run, "good") == 0
    assert again(bad_run, "good cut") == 1
    assert again(bad_run, "good cut", "--salvage") == 0
    assert "damaged archive" in capsys.readouterr().out
    # Three bad ones of the thirteen samples of both shards.
    assert again(bad_run, "good mixed") == 1
    assert again(bad_run, "good mixed", "--max-bad", "0.22") == 1
    assert again(bad_run, "good mixed", "--max-bad", "0.24") == 0
    assert again(bad_run, "good mixed cut", "--max-bad", "1", "--salvage") == 0


def test_a_table_without_pixels_is_said(
    bad_run: BadRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard, out = bad_run.shards["good"], str(tmp_path)
    score_here(score_config([shard], out, bad_run.teacher, store="none"))
    flags = ["--out", out, "--teacher", bad_run.teacher, *FLAGS]
    assert exit_code(score, shard, *flags, "--store", "none") == 0
    assert "training will need the shards" in capsys.readouterr().out


def test_status_agrees_with_what_is_there(bad_run: BadRun, capsys: pytest.CaptureFixture[str]) -> None:
    assert again(bad_run, "good mixed cut") == 1
    capsys.readouterr()
    assert exit_code(status, bad_run.out, "--json") == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["done"], told["failed"], told["missing"], told["damaged"]) == (3, 1, 0, 1)
    assert (told["rows"], told["samples"], told["quarantined"]) == (24, 15, 3)
    assert told["rows"] == len(rows_of(bad_run.out))
    assert told["failures"].keys() == {bad_run.shards["labels"]}
    assert sum(told["errors"].values()) == 4
    assert any(reason.startswith("archive: ") for reason in told["errors"])
    assert told["last_run"]["state"] == "incomplete"
    assert told["owner"] is None
    assert exit_code(status, bad_run.out) == 1
    text = capsys.readouterr().out
    assert "3 done, 0 missing, 1 failed, 1 damaged" in text
    assert "24 of 15 samples, 3 of them without a row" in text


def test_redo_errors_scores_shards_with_errors_again(bad_run: BadRun) -> None:
    before = {name: footer["provenance"]["run_id"] for name, footer in footers_of(bad_run.out).items()}
    rows = rows_of(bad_run.out)
    assert again(bad_run, "good mixed cut", "--redo-errors") == 1
    after = {name: footer["provenance"]["run_id"] for name, footer in footers_of(bad_run.out).items()}
    redone = {name for name in after if after[name] != before[name]}
    assert redone == {bad_run.shards["mixed"], bad_run.shards["cut"]}
    assert rows_of(bad_run.out) == rows
