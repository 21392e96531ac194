"""Bad samples and damaged archives among good ones: every good one gives its rows, every bad one its line."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from patchsieve.pipeline.identity import digest_of
from patchsieve.pipeline.output.folder import OutputFolder
from patchsieve.pipeline.score import estimate
from patchsieve.pipeline.score.messages import ShardResult
from patchsieve.pipeline.score.request import make_request
from patchsieve.pipeline.tables.schema import SCORES
from tests.helpers.archives import END, apart, archive
from tests.helpers.bad_samples import DAMAGED, FAULTS, GOOD, mixed_members, whole_members
from tests.helpers.photos import photo_samples, write_shard
from tests.helpers.score_runs import (
    errors_of,
    footers_of,
    rows_of,
    save_small_teacher,
    score_config,
    score_here,
)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_small_teacher(tmp_path_factory.mktemp("teacher"))


def test_good_and_bad_samples_of_one_shard(teacher: str, tmp_path: Path) -> None:
    path = tmp_path / "mixed.tar"
    path.write_bytes(archive(mixed_members()))
    (result,) = score_here(score_config([path], tmp_path / "out", teacher)).values()
    rows = rows_of(tmp_path / "out")
    assert {key for _, key, _ in rows} == set(GOOD)
    assert len(rows) == 2 * len(GOOD)
    sizes = {key: (row["image_height"], row["image_width"]) for (_, key, _), row in rows.items()}
    assert (sizes["pixel"], sizes["strip"], sizes["both"]) == ((1, 1), (3, 2000), (40, 30))
    found = [(e["sample_key"], e["stage"], e["member"], e["reason"]) for e in errors_of(tmp_path / "out")]
    assert len(found) == len(FAULTS)
    for key, stage, name, reason in FAULTS:
        assert [e for e in found if e[:3] == (key, stage, name) and reason in e[3]], (key, reason, found)
    assert {error["shard"] for error in errors_of(tmp_path / "out")} == {str(path)}
    assert result.failed is None
    assert (result.images, result.quarantined, result.damaged) == (len(GOOD), len(FAULTS), False)
    assert result.samples == result.images + result.quarantined
    # The good rows are those of a shard that never had the bad ones.
    clean = tmp_path / "clean" / "mixed.tar"
    clean.parent.mkdir()
    clean.write_bytes(archive(m for sample in GOOD.values() for m in sample))
    config = score_config([clean], tmp_path / "clean-out", teacher, root=str(tmp_path / "clean"))
    score_here(config)
    alone = {
        (str(path), *key[1:]): row | {"shard": str(path)}
        for key, row in rows_of(tmp_path / "clean-out").items()
    }
    assert rows == alone


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_archives_give_what_lies_before(teacher: str, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "damaged.tar"
    content = DAMAGED[damage](whole_members(5))
    path.write_bytes(content)
    (result,) = score_here(score_config([path], tmp_path / "out", teacher)).values()
    (footer,) = footers_of(tmp_path / "out").values()
    assert {key for _, key, _ in rows_of(tmp_path / "out")} == {"s0", "s1", "s2"}
    assert footer["shard"]["size"] == len(content), "size and hash cover what lies behind the damage"
    if damage == "one end block of two":
        # As every writer's archive ends for every reader: nothing is missing.
        assert not result.damaged
        return
    assert result.damaged
    assert footer["shard"]["damaged"]
    assert result.failed is None
    archives = [error for error in errors_of(tmp_path / "out") if error["stage"] == "archive"]
    assert [(error["sample_key"], error["member"]) for error in archives] == [(None, None)]
    others = [error["sample_key"] for error in errors_of(tmp_path / "out") if error["stage"] != "archive"]
    assert others == (["s3"] if damage == "cut in the middle of an image" else [])


def scored(shards: Iterable[Path], out: Path, teacher: str, **changes: object) -> list[ShardResult]:
    return list(score_here(score_config(shards, out, teacher, **changes)).values())


def test_a_shard_without_a_row_has_failed(teacher: str, tmp_path: Path) -> None:
    labels = write_shard(tmp_path / "labels.tar", [(f"k{i}", {"cls": b"1"}) for i in range(3)])
    empty = tmp_path / "empty.tar"
    empty.write_bytes(END)
    text = tmp_path / "text.tar"
    text.write_bytes(b"no archive at all, " * 100)
    results = scored([labels, empty, text], tmp_path / "out", teacher)
    assert [result.failed is None for result in results] == [False, True, False]  # sound, and empty
    assert "none of its 3 samples gave a row; 3 of 3 faults" in (results[0].failed or "")
    assert [result.rows for result in results] == [0, 0, 0]
    assert [file.name[:6] for file in (tmp_path / "out").glob("scores/*")] == ["empty-"]
    # Why is said sample by sample, although there is no table.
    listed = [(error["shard"], error["sample_key"]) for error in errors_of(tmp_path / "out")]
    assert sorted(listed, key=str) == sorted(
        [*((str(labels), f"k{i}") for i in range(3)), (str(text), None)], key=str
    )


def test_an_unsorted_shard_gives_the_rows_of_a_sorted_one(
    teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sorted").mkdir()
    tidy = write_shard(tmp_path / "sorted" / "a.tar", photo_samples(5, height=40, width=40))
    path = apart(tidy, tmp_path / "a.tar")
    scored([tidy], tmp_path / "expected", teacher, root=str(tidy.parent))
    out = tmp_path / "out"
    (result,) = scored([path], out, teacher, root=str(tmp_path))
    # Three images come before their labels, whose lateness costs nothing; of two samples each half is a bad one.
    assert (result.images, result.samples, result.quarantined) == (3, 7, 4)
    assert any("tar --sort=name" in error["reason"] for error in errors_of(out))
    unsorted = score_config([path], out, teacher, root=str(tmp_path), unsorted=True)
    request = make_request(unsorted)
    monkeypatch.setattr(estimate, "PROBED_SAMPLES", 2)
    monkeypatch.setattr(estimate, "PROBE_S", 0.0)
    assert estimate.probe(torch.device("cpu"), request=request, decode_threads=1).samples == 5
    identity = digest_of(request.fields(request.rows("fp32")))
    assert OutputFolder(str(out), SCORES, run_id="r").plan(request.shards, identity, redo_errors=True).todo
    (result,) = scored([path], tmp_path / "whole", teacher, root=str(tmp_path), unsorted=True)
    assert (result.failed, result.images, result.samples, result.faults) == (None, 5, 5, {})
    assert rows_of(tmp_path / "whole") == rows_of(tmp_path / "expected")
    assert rows_of(out) == {
        key: row for key, row in rows_of(tmp_path / "whole").items() if key in rows_of(out)
    }


def test_a_wrong_image_field_never_passes_for_success(teacher: str, tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.tar", photo_samples(3, height=40, width=40))
    (result,) = scored([path], tmp_path / "wrong", teacher, image_field="image.jpg")
    assert "jpg, cls" in (result.failed or "")
    (result,) = scored([path], tmp_path / "right", teacher, image_field=" .JPG ; png")
    assert (result.failed, result.rows) == (None, 6)
