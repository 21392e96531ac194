"""The score job's bad shards pruned, and what cannot be asked: one line, exit 2, inputs untouched."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from patchsieve.jobs.prune import main
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.output.folder import OutputFolder
from patchsieve.pipeline.pruned.dataset import PrunedDataset
from patchsieve.pipeline.pruned.index import INDEX
from patchsieve.pipeline.shards.specs import Shard
from patchsieve.ranker.model.checkpoint import save_ranker
from patchsieve.ranker.prune.request import make_prune_request, output_paths
from tests.helpers.archives import END, apart, archive, member, pax
from tests.helpers.bad_samples import DAMAGED, FAULTS, GOOD, PHOTO, mixed_members, whole_members
from tests.helpers.photos import photo_samples, write_shard
from tests.helpers.prune_runs import index_of, members_of, prune_config, prune_here, save_small_ranker
from tests.helpers.rankers import TEACHER, small_ranker


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_small_ranker(tmp_path_factory.mktemp("ranker"))


def test_the_bad_samples_of_the_score_job_are_copied_and_listed(ranker: str, tmp_path: Path) -> None:
    path = tmp_path / "in" / "mixed.tar"
    path.parent.mkdir()
    content = archive(mixed_members())
    path.write_bytes(content)
    (result,) = prune_here(prune_config([path], tmp_path / "out", ranker)).values()
    assert path.read_bytes() == content
    assert (result.failed, result.images, result.quarantined) == (None, len(GOOD), len(FAULTS))
    images = {"first.jpg", "pixel.png", "strip.png", "both.jpg", "in/folder.JPG", "last.webp"}
    expected: list[Any] = []
    seen = set()
    for name, data in mixed_members():
        # The second "first" is a key seen before: it is copied.
        if name in images and name not in seen:
            stem = name.rpartition(".")[0]
            expected += [f"{stem}.patches.jpg", f"{stem}.patches.json"]
        else:
            expected.append((name, data))
        seen.add(name)
    after = members_of(tmp_path / "out" / "shards" / "mixed.tar")
    assert [name if ".patches." in name else (name, data) for name, data in after] == expected
    (errors,) = (tmp_path / "out" / "errors").glob("*.parquet")
    found = [
        (e["sample_key"], e["stage"], e["member"], e["reason"]) for e in pq.read_table(errors).to_pylist()
    ]
    assert len(found) == len(FAULTS)
    for key, stage, at, reason in FAULTS:
        assert [e for e in found if e[:3] == (key, stage, at) and reason in e[3]], (key, reason, found)
    pruned = [row["sample_key"] for row in index_of(tmp_path / "out") if row["reason"] is None]
    assert pruned == list(GOOD)


def test_an_unsorted_shard_is_pruned_like_a_sorted_one(ranker: str, tmp_path: Path) -> None:
    tidy = write_shard(tmp_path / "in" / "a.tar", photo_samples(5, height=40, width=40))
    path = apart(tidy, tmp_path / "apart" / "a.tar")
    for shard, name, options in ((tidy, "tidy", {}), (path, "apart", {"unsorted": True})):
        config = prune_config([shard], tmp_path / f"{name}-out", ranker, root=str(shard.parent), **options)
        (result,) = prune_here(config).values()
        assert (result.failed, result.images, result.samples, result.faults) == (None, 5, 5, {})
    tars = [members_of(tmp_path / out / "shards" / "a.tar") for out in ("tidy-out", "apart-out")]
    assert sorted(tars[0]) == sorted(tars[1])
    # Another tar than without it, and so another output.
    plain = prune_config([path], tmp_path / "apart-out", ranker, root=str(path.parent))
    assert make_prune_request(plain).fields != make_prune_request(config).fields
    prune_here(dataclasses.replace(config, out=str(tmp_path / "index"), format="index"))
    read = PrunedDataset(
        str(path), index=str(tmp_path / "index"), root=str(path.parent), unsorted=True, image_field="jpg"
    )
    assert sorted((one.key, one.fields["cls"]) for one in read) == sorted(
        (name.removesuffix(".cls"), data) for name, data in tars[0] if name.endswith(".cls")
    )


def test_odd_names_cost_their_sample_at_most(ranker: str, tmp_path: Path) -> None:
    path = tmp_path / "in" / f"{'ä' * 122}.tar"  # 248 bytes
    path.parent.mkdir()
    nul = pax({"path": b"nul\0l.jpg"}) + member("x", PHOTO)
    long = pax({"path": "k" * 4091 + ".jpg"}) + member("x", PHOTO)
    path.write_bytes(nul + member("good.jpg", PHOTO) + long + END)
    (result,) = prune_here(prune_config([path], tmp_path / "out", ranker)).values()
    assert (result.failed, result.images, result.samples, result.quarantined) == (None, 1, 3, 2)
    (errors,) = (tmp_path / "out" / "errors").glob("*.parquet")
    reasons = sorted(row["reason"] for row in pq.read_table(errors).to_pylist())
    assert "more than 4096 characters" in reasons[0]
    assert reasons[1] == "the name of a member holds a NUL"
    told: list[str] = []

    def note(error: Exception) -> bool:
        told.append(str(error))
        return True

    dataset = PrunedDataset(str(tmp_path / "out" / "shards" / path.name), handler=note)
    assert [sample.key for sample in dataset] == ["good"]
    assert ["prune copied it as it was" in error for error in told] == [True]


def test_a_name_that_no_file_can_have_is_refused_before_anything_is_read() -> None:
    shard = Shard("s3://b/x.tar", f"s3://b/{'x' * 252}.tar", "x-0", 1, "t")
    with pytest.raises(UserError, match="more than 255 bytes, rename it"):
        output_paths([shard], rooted=False)


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_archive_fails_or_is_salvaged(ranker: str, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "in" / "damaged.tar"
    path.parent.mkdir()
    content = DAMAGED[damage](whole_members(5))
    path.write_bytes(content)
    (result,) = prune_here(prune_config([path], tmp_path / "out", ranker)).values()
    if damage == "one end block of two":
        assert (result.failed, result.images) == (None, 3)
        return
    assert (result.failed or "").startswith("damaged archive: ")
    assert not list((tmp_path / "out").rglob("*.tar"))
    (salvaged,) = prune_here(prune_config([path], tmp_path / "salvaged", ranker, salvage=True)).values()
    assert (salvaged.failed, salvaged.damaged, salvaged.images) == (None, True, 3)
    assert path.read_bytes() == content


def test_what_cannot_be_asked_is_one_line_and_exit_2(
    ranker: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = [
        write_shard(tmp_path / name / "a.tar", photo_samples(1, number, 40, 40))
        for number, name in enumerate(("one", "two"))
    ]
    first, second = map(str, shards)
    contents = [path.read_bytes() for path in shards]
    out = tmp_path / "out"
    other = str(tmp_path / "other")
    save_ranker(
        other, small_ranker(image_size=96), teacher={**TEACHER, "grid": 6}, tables=[], temperature=1.0
    )
    made = make_prune_request(prune_config([first], out, ranker))
    OutputFolder(str(out), INDEX, run_id="r").adopt_config(made.fields, other={})
    asked: dict[str, list[str]] = {
        "--keep is 0.0, must be above 0": [first, "--keep", "0"],
        "--keep is 1.01, must be above 0 and at most 1": [first, "--keep", "1.01"],
        "--size 100 must be a multiple of 64": [first, "--size", "100"],
        "would both be written to shards/a.tar": [first, second],
        "a folder of shards to prune: choose another": [first, "--out", str(tmp_path / "one" / "pruned")],
        "grid: 4 -> 6": [first, "--ranker", other],
        "no ranker at ": [first, "--ranker", str(tmp_path / "nowhere")],
    }
    for message, arguments in asked.items():
        options = ["--out", str(out)] if "--out" not in arguments else []
        options += ["--ranker", ranker] if "--ranker" not in arguments else []
        with pytest.raises(SystemExit) as ended:
            main([*arguments, *options])
        told = capsys.readouterr().err
        assert ended.value.code == 2, told
        assert message in told
        assert told.count("\n") == 1
    assert [path.read_bytes() for path in shards] == contents
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["a.tar"]
    assert not list(out.rglob("*.tar"))
