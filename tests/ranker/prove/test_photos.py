"""Labelled images out of shards: where labels are, what is left out, and which images choices are made on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.shards.specs import expand_shards
from patchsieve.ranker.prove.photos import (
    LabelField,
    LabelledPhotos,
    class_names,
    read_photos,
    usable_test,
    validation_split,
)
from tests.helpers.archives import apart
from tests.helpers.photos import photo, write_shard


def read(path: Path, label: str = "cls", *, merged: Any = None, **options: Any) -> LabelledPhotos:
    return read_photos(
        expand_shards([str(path)]),
        "train",
        LabelField(label, merged or {}),
        grid=4,
        patch_size=8,
        image_field="jpg",
        **{"limit": None, **options},
    )


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four good photos, and samples that lack a label or an image."""
    folder = tmp_path_factory.mktemp("photos")
    samples: list[tuple[str, dict[str, bytes]]] = [
        (
            f"good-{n}",
            {
                "jpg": photo(n, 40, 50),
                "cls": f" {n * 5}\n".encode(),
                "json": json.dumps({"kind": "ab"[n % 2], "n": n, "no": n / 2, "yes": True}).encode(),
            },
        )
        for n in range(4)
    ]
    samples += [
        ("unlabelled", {"jpg": photo(7, 40, 50)}),
        ("no-picture", {"cls": b"5", "jpg": b"none"}),
        ("no-field", {"cls": b"5"}),
        ("bad-text", {"jpg": photo(8, 40, 50), "cls": b"\xff\xfe"}),
        ("escape", {"jpg": photo(9, 40, 50), "cls": b"\x1b[31m"}),
    ]
    return write_shard(folder / "a.tar", samples)


def test_labels_and_what_is_left_out(shard: Path) -> None:
    photos = read(shard)
    assert photos.keys == ("good-0", "good-1", "good-2", "good-3")
    assert photos.names == ("0", "5", "10", "15")
    assert photos.patches.shape == (4, 16, 192)
    assert (photos.unlabelled, photos.unreadable) == (3, 2)
    assert class_names(photos) == ["0", "5", "10", "15"]
    assert photos.labels(["0", "5", "10", "15"]).tolist() == [0, 1, 2, 3]


def test_labels_that_lie_apart_from_their_images(shard: Path, tmp_path: Path) -> None:
    tidy, found = read(shard), read(apart(shard, tmp_path / "a.tar"), unsorted=True)
    assert sorted(zip(found.keys, found.names, found.files, strict=True)) == sorted(
        zip(tidy.keys, tidy.names, tidy.files, strict=True)
    )
    assert (found.unlabelled, found.unreadable) == (tidy.unlabelled, tidy.unreadable)


@pytest.mark.parametrize(
    ("label", "names"),
    [("json:kind", ("a", "b", "a", "b")), ("JSON:n", ("0", "1", "2", "3")), (".cls", ("0", "5", "10", "15"))],
)
def test_where_labels_are(shard: Path, label: str, names: tuple[str, ...]) -> None:
    assert read(shard, label).names == names


@pytest.mark.parametrize("label", ["txt", "json:other", "json:yes", "json:no", "cls:kind", "jpg"])
def test_labels_that_are_not_there(shard: Path, label: str) -> None:
    with pytest.raises(
        UserError, match=f"0 labelled images in the train shards .* without a label in {label}"
    ):
        read(shard, label)


def test_merged_labels_are_one_class(shard: Path) -> None:
    photos = read(shard, merged={"5": "5", "15": "5"})
    assert photos.names == ("0", "5", "10", "5")


def test_a_limit_takes_the_first(shard: Path) -> None:
    assert read(shard, limit=3).keys == ("good-0", "good-1", "good-2")


def test_a_damaged_archive_is_refused(shard: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.tar").write_bytes(shard.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"cut.tar is a damaged archive"):
        read(tmp_path / "cut.tar")


def test_test_images_that_were_trained_on_or_are_of_another_class_are_left_out(shard: Path) -> None:
    photos = read(shard)
    train = photos.take(np.array([True, False, False, False]))
    test, notes = usable_test(photos, train, {"5", "10"})
    assert test.keys == ("good-1", "good-2")
    assert [note.split(" and are left")[0] for note in notes] == [
        "1 test images are train images too",
        "1 test images have a label that no train image has",
    ]
    with pytest.raises(UserError, match="0 test images are left"):
        usable_test(photos, photos, {"5"})


def test_the_split_depends_on_keys_alone(shard: Path) -> None:
    photos = read(shard)
    many = dataclasses.replace(
        photos, keys=tuple(f"k{n}" for n in range(400)), names=photos.names * 100, files=("",) * 400
    )
    chosen = validation_split(many, 0.2, 0)
    assert 50 < chosen.sum() < 110
    backwards = dataclasses.replace(many, keys=many.keys[::-1], names=many.names[::-1])
    assert validation_split(backwards, 0.2, 0).tolist() == chosen[::-1].tolist()
    assert validation_split(many, 0.2, 1).tolist() != chosen.tolist()
    alone = dataclasses.replace(many, names=("a",) * 400)
    with pytest.raises(UserError, match=r"400 train images at --validation 0\.2"):
        validation_split(alone, 0.2, 0)


def test_what_images_share_is_read_and_asked_of_all(shard: Path) -> None:
    photos = read(shard, groups=[LabelField("json:kind", {}), LabelField("json:n", {})])
    assert photos.groups == (("a", "b", "a", "b"), ("0", "1", "2", "3"))
    assert photos.take(np.array([False, True, True, False])).groups == (("b", "a"), ("1", "2"))
    with pytest.raises(UserError, match="--group json:place: sample good-0 has no such field"):
        read(shard, groups=[LabelField("json:place", {})])
