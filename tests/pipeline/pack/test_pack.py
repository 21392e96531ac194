"""Folders of photos become shards that score and prune take, with labels that are read back."""

from __future__ import annotations

import inspect
import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

import patchsieve
from patchsieve.jobs import pack as job
from patchsieve.pipeline import storage
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.pack.config import PackConfig
from patchsieve.pipeline.pack.job import PackSummary
from patchsieve.pipeline.pack.photos import SampleKeys
from patchsieve.pipeline.pruned.dataset import PrunedDataset
from patchsieve.pipeline.shards.reader import Sample, ShardReader
from patchsieve.pipeline.shards.specs import expand_shards
from tests.helpers.demo_photos import write_photos
from tests.helpers.photos import photo
from tests.helpers.prune_runs import members_of, prune_config, prune_here
from tests.helpers.score_runs import rows_of, save_small_teacher, score_config, score_here


def packed(folder: Path, out: Path, **settings: Any) -> PackSummary:
    return patchsieve.pack(str(folder), out=str(out), **settings)


def samples(out: Path) -> dict[str, dict[str, bytes]]:
    """Fields by key, of all shards of a packing in their order."""
    found: dict[str, dict[str, bytes]] = {}
    for shard in expand_shards([str(out)]):
        with ShardReader(shard) as reader:
            for sample in reader:
                assert isinstance(sample, Sample)
                assert sample.key not in found
                found[sample.key] = sample.fields
    return found


def test_from_a_folder_of_classes_to_scores_to_pruned_images_with_labels(tmp_path: Path) -> None:
    names = [f"{label}/{number}.jpg" for label in ("cat", "dog") for number in range(2)]
    files = {name: photo(seed, 64, 80) for seed, name in enumerate(names)}
    summary = packed(write_photos(tmp_path / "photos", files), tmp_path / "shards", samples_per_shard=3)
    assert (summary.photos, summary.classes, len(summary.shards)) == (4, ("cat", "dog"), 2)
    shards = summary.shards
    score_here(score_config(shards, tmp_path / "scores", save_small_teacher(tmp_path)))
    assert {key for _, key, _ in rows_of(tmp_path / "scores")} == {"cat-0", "cat-1", "dog-0", "dog-1"}
    prune_here(prune_config(shards, tmp_path / "pruned", "baseline:variance"))
    read = PrunedDataset(str(tmp_path / "pruned" / "shards"), decoders={"cls": int})
    assert {sample.key: sample.fields["cls"] for sample in read} == {
        "cat-0": 0,
        "cat-1": 0,
        "dog-0": 1,
        "dog-1": 1,
    }


def test_files_are_copied_as_they_are_under_keys_that_are_no_paths(tmp_path: Path) -> None:
    files = {
        "a.b/x.JPG": b"1",
        "a.b/deep/x.png": b"2",
        "c/..png": b"3",
        "c/.hidden.jpg": b"4",
        "c/n.txt": b"5",
    }
    write_photos(tmp_path / "photos", files)
    with open(os.fsencode(tmp_path) + b"/photos/c/\xff.jpg", "wb") as local_file:
        local_file.write(b"6")
    (tmp_path / "linked").mkdir()
    write_photos(tmp_path / "elsewhere", {"y.gif": b"7"})
    (tmp_path / "photos" / "d").symlink_to(tmp_path / "elsewhere")
    packed(tmp_path / "photos", tmp_path / "shards")
    assert samples(tmp_path / "shards") == {
        "a_b-x": {"jpg": b"1", "cls": b"0"},
        "a_b-deep-x": {"png": b"2", "cls": b"0"},
        "c-\ufffd": {"jpg": b"6", "cls": b"1"},
        "d-y": {"gif": b"7", "cls": b"2"},
    }


def test_again_nothing_is_written_and_what_is_gone_is_made_anew(tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "photos", {f"{number:02d}.jpg": b"%d" % number for number in range(20)})
    out = tmp_path / "shards"
    packed(folder, out, samples_per_shard=8)
    assert [fields for fields in samples(out).values() if "cls" in fields] == []
    assert list(samples(out)) != sorted(samples(out)), "shuffled"
    first = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()}
    assert sorted(first) == ["pack.json", *(f"photos-{number:06d}.tar" for number in range(3))]
    (out / "photos-000001.tar").unlink()
    (out / ".photos-000002.tar.dead.1.tmp").write_bytes(b"half")
    packed(folder, out, samples_per_shard=8)
    again = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()}
    assert {name for name in first if again[name] != first[name]} == {"photos-000001.tar"}
    assert again.keys() == first.keys()
    assert again["photos-000001.tar"][0] == first["photos-000001.tar"][0]


def test_a_test_set_has_the_numbers_of_its_training_set(tmp_path: Path) -> None:
    train = write_photos(tmp_path / "train", {f"{name}/1.jpg": b"x" for name in ("ant", "bee", "cat")})
    test = write_photos(tmp_path / "test", {"cat/1.jpg": b"x"})
    packed(train, tmp_path / "shards")
    packed(test, tmp_path / "same", classes=str(tmp_path / "shards"))
    assert samples(tmp_path / "same")["cat-1"]["cls"] == b"2"
    assert json.loads((tmp_path / "same" / "pack.json").read_text())["classes"] == ["ant", "bee", "cat"]
    write_photos(test, {"\x1bdog/1.jpg": b"x"})
    with pytest.raises(UserError, match="has no class for \x1bdog"):
        packed(test, tmp_path / "other", classes=str(tmp_path / "shards"))
    with pytest.raises(UserError, match=r"holds no pack\.json"):
        packed(test, tmp_path / "other", classes=str(tmp_path))


def test_what_cannot_be_packed_is_told(tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "photos", {"a.jpg": b"x", "cats/b.jpg": b"y"})
    with pytest.raises(UserError, match="1 of 2 photos lie in no sub folder"):
        packed(folder, tmp_path / "shards")
    packed(folder, tmp_path / "shards", labels=False)
    assert all(fields.keys() == {"jpg"} for fields in samples(tmp_path / "shards").values())
    (folder / "a.jpg").write_bytes(b"longer")
    with pytest.raises(UserError, match="other photos or settings"):
        packed(folder, tmp_path / "shards", labels=False)
    members = members_of(tmp_path / "shards" / "photos-000000.tar")
    assert sorted(members) == [("a.jpg", b"x"), ("cats-b.jpg", b"y")]
    (tmp_path / "shards" / "pack.json").unlink()
    with pytest.raises(UserError, match="not of a packing"):
        packed(folder, tmp_path / "shards", labels=False)
    (folder / "up").symlink_to(folder)
    with pytest.raises(UserError, match=r"photos/up and .*/photos are one folder, by a link"):
        packed(folder, tmp_path / "new")
    split = write_photos(tmp_path / "split", {"train/cats/a.jpg": b"x", "Test/cats/b.jpg": b"y"})
    with pytest.raises(UserError, match="sub folders Test, train are parts of a dataset, not classes"):
        packed(split, tmp_path / "new")
    with pytest.raises(UserError, match="there is no folder"):
        packed(tmp_path / "nowhere", tmp_path / "new")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "pack.json").write_text('{"identity": 3}')
    with pytest.raises(UserError, match=r"pack\.json is damaged"):
        packed(write_photos(tmp_path / "one", {"a.jpg": b"x"}), tmp_path / "bad")


def test_what_would_never_end_ends(tmp_path: Path) -> None:
    """A pipe, links among links that double at every step, folders deeper than calls go, many names of one key."""
    folder = write_photos(tmp_path / "photos", {"a.jpg": b"x"})
    os.mkfifo(folder / "pipe.jpg")
    deep = folder
    for _ in range(100):
        deep /= "d"
        deep.mkdir()
    (deep / "b.jpg").write_bytes(b"y")
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 80)
    try:
        found = storage.list_below(str(folder))
        below = storage.glob(f"{folder}/**/*.jpg")
    finally:
        sys.setrecursionlimit(limit)
    assert (
        [info.url for info in found] == [info.url for info in below] == [f"{folder}/a.jpg", f"{deep}/b.jpg"]
    )
    for number in range(40):
        (folder / f"{number}").mkdir()
    for number, name in itertools.product(range(39), "xy"):
        (folder / f"{number}" / name).symlink_to(folder / f"{number + 1}")
    with pytest.raises(UserError, match="are one folder, by a link: remove the link"):
        packed(folder, tmp_path / "shards")
    keys, taken = SampleKeys(), Asked()
    keys._taken = taken
    assert len({keys.new(f"x.{ending}") for ending in range(300)}) == 300
    assert taken.times < 3 * 300


class Asked(dict[str, int]):
    """Counts how often it was asked for a key."""

    times = 0

    def __contains__(self, key: object) -> bool:
        self.times += 1
        return super().__contains__(key)


def test_the_command_says_what_it_packed_and_what_it_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_photos(
        tmp_path / "photos",
        {"a/1.jpg": b"x", "a/0.jpg": b"", "a/1.xml": b"x", "b/2.avif": b"y", "README": b""},
    )
    arguments = [str(folder), "--out", str(tmp_path / "out"), "--image-field", "jpg;avif"]
    with pytest.raises(SystemExit) as ended:
        job.main(arguments)
    assert ended.value.code == 0
    assert capsys.readouterr().out.splitlines() == [
        "1 files that end in .xml are left out (--image-field)",
        "1 files that end in nothing are left out (--image-field)",
        "empty files, left out: a/0.jpg",
        "classes, numbered from 0 on: a, b",
        "photos-000000.tar: 2 photos",
        f"complete: 2 photos of 2 classes in 1 shard: {tmp_path / 'out'}",
    ]
    with pytest.raises(UserError, match="--samples-per-shard is 0, must be at least 1"):
        PackConfig(folder="x", out="y", samples_per_shard=0)
