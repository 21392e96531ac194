"""One shard end to end, without Ray: the same rows whatever happens around them, and what a table says of itself."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from patchsieve.pipeline.compute import launch
from patchsieve.pipeline.errors import InfrastructureError
from patchsieve.pipeline.output.faults import MOST_REASONS, FaultLog, failure_reason
from patchsieve.pipeline.score.shard import teacher_record
from patchsieve.pipeline.score.view_feed import in_share
from patchsieve.pipeline.scoring.scorer import Scorer
from patchsieve.pipeline.shards.reader import Fault
from patchsieve.pipeline.tables.schema import TeacherRecord
from patchsieve.pipeline.teacher.checkpoint import read_teacher
from tests.helpers.photos import photo_samples, write_shard
from tests.helpers.score_runs import (
    Rows,
    breaks_off,
    footers_of,
    local_scoring,
    rows_of,
    save_small_teacher,
    score_config,
    score_here,
    without_scores,
)
from tests.helpers.servers import serve_files
from tests.helpers.tables import CONFIG, fault_log, record_of


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_small_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of one file name and equal keys in two folders, and a third one."""
    folder = tmp_path_factory.mktemp("corpus")
    for name, count, height in (("one/photos", 5, 60), ("two/photos", 5, 70), ("three", 3, 50)):
        write_shard(folder / f"{name}.tar", photo_samples(count, height=height, width=80))
    return folder


def shards_of(corpus: Path) -> list[Path]:
    return sorted(corpus.rglob("*.tar"))


@pytest.fixture(scope="module")
def plain(corpus: Path, teacher: str, tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """The rows of an undisturbed run: views 0 to 7 of every sample."""
    out = tmp_path_factory.mktemp("plain")
    score_here(score_config(shards_of(corpus), out, teacher, views="8"))
    return rows_of(out)


def test_rows_are_told_apart_by_shard_key_and_view(corpus: Path, plain: Rows) -> None:
    shards = [str(path) for path in shards_of(corpus)]
    assert {shard for shard, _, _ in plain} == set(shards)
    assert len(plain) == 13 * 8
    one, two = (
        {key[1:]: row for key, row in plain.items() if key[0].endswith(end)}
        for end in ("one/photos.tar", "two/photos.tar")
    )
    # Equal keys draw equal masks; the images, and with them the rows, are others.
    assert one.keys() == two.keys()
    assert all(one[key]["visible"] == two[key]["visible"] for key in one)
    assert all(one[key]["patches"] != two[key]["patches"] for key in one)


def test_two_shards_at_once_and_in_another_order(
    corpus: Path, teacher: str, plain: Rows, tmp_path: Path
) -> None:
    config = score_config(reversed(shards_of(corpus)), tmp_path, teacher, views="8")
    with local_scoring(config) as (scoring, shards), ThreadPoolExecutor(2) as pool:
        results = list(pool.map(scoring.score, shards))
        progress = scoring.progress
    assert rows_of(tmp_path) == plain
    assert sorted(result.images for result in results) == [3, 5, 5]
    assert (progress.images, progress.views, progress.faults) == (13, 13 * 8, 0)
    assert progress.bytes_read <= sum(path.stat().st_size for path in shards_of(corpus))
    assert progress.moved >= 13


def test_batch_size_changes_rounding_only(corpus: Path, teacher: str, plain: Rows, tmp_path: Path) -> None:
    score_here(score_config(shards_of(corpus), tmp_path, teacher, views="8", batch_size=3))
    rows = rows_of(tmp_path)
    assert without_scores(rows) == without_scores(plain)
    for key, row in rows.items():
        assert row["score"] == pytest.approx(plain[key]["score"], rel=1e-5, abs=0)


def test_views_in_another_output_add_to_the_first(
    corpus: Path, teacher: str, plain: Rows, tmp_path: Path
) -> None:
    score_here(score_config(shards_of(corpus), tmp_path, teacher, views="4:8"))
    later = {key: row for key, row in plain.items() if key[2] >= 4}
    rows = rows_of(tmp_path)
    assert without_scores(rows) == without_scores(later)
    for key, row in rows.items():
        # Other batch-mates than in a run of eight views.
        assert row["score"] == pytest.approx(later[key]["score"], rel=1e-5, abs=0)


def test_resume_scores_only_what_is_left(corpus: Path, teacher: str, plain: Rows, tmp_path: Path) -> None:
    config = score_config(shards_of(corpus), tmp_path, teacher, views="8")
    first = score_here(dataclasses.replace(config, limit_shards=1))
    assert list(first) == [str(shards_of(corpus)[0])]
    second = score_here(config)
    assert list(second) == [str(path) for path in shards_of(corpus)[1:]]
    assert rows_of(tmp_path) == plain
    assert score_here(config) == {}


def test_a_read_that_breaks_off_commits_nothing_and_is_made_again(
    corpus: Path, teacher: str, plain: Rows, tmp_path: Path
) -> None:
    path = corpus / "one" / "photos.tar"
    local = score_config([path], tmp_path / "local", teacher, views="8", root=str(corpus / "one"))
    score_here(local)
    with serve_files() as server:
        data = path.read_bytes()
        server.files["/photos.tar"] = data
        config = score_config(
            [server.url("/photos.tar")], tmp_path / "out", teacher, views="8", root=server.url("/")
        )
        with local_scoring(config) as (scoring, (shard,)):
            server.troubles["/photos.tar"] = breaks_off(len(data))
            with pytest.raises(InfrastructureError, match="403"):
                scoring.score(shard)
            assert not list((tmp_path / "out").glob("*/*.parquet"))
            scoring.score(shard)
    # Read through another endpoint, named by its path below the root.
    assert rows_of(tmp_path / "out") == rows_of(tmp_path / "local")
    assert {key[0] for key in rows_of(tmp_path / "out")} == {"photos.tar"}


def test_a_corpus_may_move_below_its_root(corpus: Path, teacher: str, tmp_path: Path) -> None:
    config = score_config(shards_of(corpus), tmp_path / "out", teacher, root=str(corpus))
    score_here(config)
    assert set(footers_of(tmp_path / "out")) == {"one/photos.tar", "two/photos.tar", "three.tar"}
    shutil.copytree(corpus, tmp_path / "moved")
    moved = tuple(str(path) for path in shards_of(tmp_path / "moved"))
    # Other times, the same content: nothing is left to do.
    assert score_here(dataclasses.replace(config, shards=moved, root=str(tmp_path / "moved"))) == {}


@pytest.mark.parametrize(
    ("store", "column"), [("patches", {"patches"}), ("view", {"pixels"}), ("none", set())]
)
def test_what_is_stored(
    corpus: Path, teacher: str, tmp_path: Path, store: Any, column: set[str], plain: Rows
) -> None:
    score_here(score_config([corpus / "three.tar"], tmp_path, teacher, store=store))
    rows = rows_of(tmp_path)
    assert len(rows) == 6
    bare = {"patches", "pixels"}
    for key, row in rows.items():
        assert row.keys() & bare == column
        assert [row[name] for name in row if name not in bare | {"score"}] == [
            plain[key][name] for name in plain[key] if name not in bare | {"score"}
        ]


def test_a_share_of_the_samples(corpus: Path, teacher: str, plain: Rows, tmp_path: Path) -> None:
    results = score_here(score_config(shards_of(corpus), tmp_path, teacher, views="8", sample=0.5))
    half = dataclasses.replace(CONFIG, sample=0.5)
    expected = {key: row for key, row in plain.items() if in_share(key[1], half)}
    assert 0 < len(expected) < len(plain)
    assert without_scores(rows_of(tmp_path)) == without_scores(expected)
    # The others are no errors, and a shard that holds none of the share is done all the same.
    assert all(result.quarantined == 0 and result.failed is None for result in results.values())
    assert len(results) == 3


def test_a_share_that_takes_none_is_done(corpus: Path, teacher: str, tmp_path: Path) -> None:
    config = score_config(shards_of(corpus), tmp_path, teacher, sample=1e-9)
    results = score_here(config)
    assert [(result.samples, result.rows, result.failed) for result in results.values()] == [
        (5, 0, None),
        (3, 0, None),
        (5, 0, None),
    ]
    assert rows_of(tmp_path) == {}
    assert score_here(config) == {}


def test_views_of_one_crop_hold_all_of_it(corpus: Path, teacher: str, tmp_path: Path) -> None:
    config = score_config([corpus / "three.tar"], tmp_path / "patches", teacher, crop="center", views="12")
    score_here(config)
    for key in {key[1] for key in rows_of(tmp_path / "patches")}:
        views = [row for (_, name, _), row in rows_of(tmp_path / "patches").items() if name == key]
        patches = {
            place: row["patches"][number * 192 : (number + 1) * 192]
            for row in views
            for number, place in enumerate(row["visible"])
        }
        assert len(patches) == 36
        assert len({row["crop_top"] for row in views}) == 1
    # One picture is stored once, however many views there are of it.
    stored = dataclasses.replace(config, out=str(tmp_path / "view"), store="view")
    (many,) = score_here(stored).values()
    (one,) = score_here(dataclasses.replace(stored, out=str(tmp_path / "one"), views="1")).values()
    (first, *others) = rows_of(tmp_path / "view").values()
    assert sum(row["pixels"] == first["pixels"] for row in others) == 11
    assert many.table_bytes < one.table_bytes + 12 * len(first["pixels"])


def test_what_a_table_says_of_itself(corpus: Path, teacher: str, tmp_path: Path) -> None:
    path = corpus / "three.tar"
    config = score_config([path], tmp_path, teacher, removal="encoder", masks="spread", seed=7)
    (result,) = score_here(config).values()
    (footer,) = footers_of(tmp_path).values()
    content = path.read_bytes()
    assert footer["shard"] == {
        "name": str(path),
        "size": len(content),
        "tag": footer["shard"]["tag"],
        "sha256": hashlib.sha256(content).hexdigest(),
        "samples": 3,
        "quarantined": 0,
        "damaged": False,
    }
    file = read_teacher(teacher)
    assert TeacherRecord(**footer["teacher"]) == teacher_record(file)
    assert footer["teacher"]["digest"] == file.digest
    asked = {"removal": "encoder", "masks": "spread", "seed": 7, "size": 48, "precision": "fp32", "views": 2}
    assert asked.items() <= footer["config"].items()
    assert (result.rows, result.images, result.samples) == (6, 3, 3)
    (table,) = (tmp_path / "scores").iterdir()
    assert result.table_bytes == table.stat().st_size
    assert result.seconds >= result.waited_s >= 0


def test_a_teacher_with_nothing_in_hand_waits(
    teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = [
        write_shard(tmp_path / f"{number}.tar", photo_samples(2, number, 48, 48)) for number in range(3)
    ]
    lost = 0.0

    def breaks_down(*arguments: object) -> None:
        nonlocal lost
        lost += 5000.0
        raise InfrastructureError("no memory")

    monkeypatch.setattr(launch, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + lost))
    with local_scoring(score_config(shards, tmp_path / "out", teacher)) as (scoring, todo):
        first = scoring.score(todo[0])
        lost = 1000.0
        second = scoring.score(todo[1])
        with monkeypatch.context() as broken:
            broken.setattr(Scorer, "launch", breaks_down)
            with pytest.raises(InfrastructureError):
                scoring.score(todo[2])
        third = scoring.score(todo[2])
    assert first.waited_s < 1000 <= second.waited_s
    assert third.waited_s < 1000, "it was at work while it broke down"


def faults(count: int, reason: str = "cut") -> list[Fault]:
    return [Fault(f"s{number}", f"s{number}.jpg", "decode", reason) for number in range(count)]


def log(found: list[Fault]) -> FaultLog:
    return fault_log(found, Path("never written"))


def test_reasons_are_counted_most_frequent_first() -> None:
    assert log([*faults(1, "large"), *faults(3)]).reasons() == {"decode: cut": 3, "decode: large": 1}
    many = [fault for number in range(MOST_REASONS + 5) for fault in faults(1, f"reason {number}")]
    counted = log([*many, *faults(2)]).reasons()
    assert len(counted) == MOST_REASONS + 1
    assert next(iter(counted.items())) == ("decode: cut", 2)
    assert counted["other reasons"] == 6


def test_samples_are_counted_once() -> None:
    views = [Fault("s1", None, "score", f"view {view}") for view in range(4)]
    again = [Fault("k", "k.jpg", "sample", "duplicate key")] * 2
    assert log([*views, *again, *faults(1), Fault(None, None, "archive", "cut")]).samples == 4


def test_a_shard_fails_where_no_sample_gave_a_row() -> None:
    shard = record_of(b"content", samples=4)
    assert failure_reason(shard, 1, log(faults(3))) is None
    assert failure_reason(shard, 0, log([])) is None, "none of them was of the share"
    reason = failure_reason(shard, 0, log([*faults(3), *faults(1, "large")]))
    assert reason == "none of its 4 samples gave a row; 3 of 4 faults are «decode: cut»"
    assert failure_reason(record_of(b"", samples=0), 0, log([])) is None, "sound, and empty"
