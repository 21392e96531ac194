"""Bad samples and damaged archives among good ones: every good one gives its rows, every bad one its line."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

import pytest

from patchrank.pipeline.shard_scoring import ShardResult
from tests.helpers.archives import END, archive, member
from tests.helpers.photos import encode, photo, photo_pixels, photo_samples, write_shard
from tests.helpers.score_runs import (
    errors_of,
    footers_of,
    rows_of,
    save_small_teacher,
    score_config,
    score_here,
)

PHOTO = photo(1, 60, 80)
HEADER = 512


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_small_teacher(tmp_path_factory.mktemp("teacher"))


def png_bomb(side: int) -> bytes:
    """A valid one-bit PNG of side x side pixels in a few hundred kilobytes, without ever holding the pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    line = bytes(1 + -(-side // 8))
    body = b"".join(packer.compress(line) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


GOOD = {
    "first": [("first.jpg", PHOTO), ("first.cls", b"3")],
    "pixel": [("pixel.png", encode(photo_pixels(2, 1, 1), "PNG"))],
    "strip": [("strip.png", encode(photo_pixels(3, 3, 2000), "PNG"))],
    "both": [("both.png", photo(4, 50, 90)), ("both.jpg", photo(5, 40, 30))],
    "in/folder": [("in/folder.seg.png", photo(6, 50, 90)), ("in/folder.JPG", photo(6, 50, 90))],
    "last": [("last.webp", encode(photo_pixels(7, 60, 60), "WEBP"))],
}
BAD = {
    "cut": ([("cut.jpg", PHOTO[: len(PHOTO) // 2])], "decode", "cut.jpg", "JPEG breaks off"),
    "empty": ([("empty.jpg", b"")], "decode", "empty.jpg", "empty file"),
    "text": ([("text.jpg", b"<html>not found</html>")], "decode", "text.jpg", "not an image"),
    "bomb": ([("bomb.png", png_bomb(30_000))], "decode", "bomb.png", "too large"),
    "bare": ([("bare.json", b"{}"), ("bare.txt", b"a cat")], "sample", None, "json, txt"),
    "first": ([("first.jpg", photo(8, 60, 80))], "sample", "first.jpg", "duplicate key"),
    "apart": ([("apart.jpg", PHOTO)], "sample", "apart.jpg", "duplicate key"),
}


def test_good_and_bad_samples_of_one_shard(teacher: str, tmp_path: Path) -> None:
    apart = [("apart.cls", b"1")]
    members = [
        *GOOD["first"],
        *BAD["cut"][0],
        *GOOD["pixel"],
        *apart,
        *BAD["empty"][0],
        *GOOD["strip"],
        *BAD["bomb"][0],
        *BAD["apart"][0],
        *GOOD["both"],
        *BAD["bare"][0],
        *GOOD["in/folder"],
        *BAD["text"][0],
        *BAD["first"][0],
        *GOOD["last"],
    ]
    path = tmp_path / "mixed.tar"
    path.write_bytes(archive(members))
    (result,) = score_here(score_config([path], tmp_path / "out", teacher)).values()
    rows = rows_of(tmp_path / "out")
    assert {key for _, key, _ in rows} == set(GOOD)
    assert len(rows) == 2 * len(GOOD)
    sizes = {key: (row["image_height"], row["image_width"]) for (_, key, _), row in rows.items()}
    assert (sizes["pixel"], sizes["strip"], sizes["both"]) == ((1, 1), (3, 2000), (40, 30))
    # What is alone of a sample when its members lie apart has no image; the rest is a duplicate of its key.
    expected = [(key, *what) for key, (_, *what) in BAD.items()] + [("apart", "sample", None, "cls")]
    found = [(e["sample_key"], e["stage"], e["member"], e["reason"]) for e in errors_of(tmp_path / "out")]
    assert len(found) == len(expected)
    for key, stage, name, reason in expected:
        assert [e for e in found if e[:3] == (key, stage, name) and reason in e[3]], (key, reason, found)
    assert {error["shard"] for error in errors_of(tmp_path / "out")} == {str(path)}
    assert result.failed is None
    assert (result.images, result.quarantined, result.damaged) == (len(GOOD), len(expected), False)
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


def whole_members(count: int) -> list[bytes]:
    return [member(f"s{number}.jpg", photo(number, 40, 50)) for number in range(count)]


def garbage_header() -> bytes:
    return b"\xa5" * HEADER


DAMAGED = {
    "cut in the middle of an image": lambda m: b"".join(m[:3]) + m[3][: len(m[3]) // 2],
    "cut inside a header": lambda m: b"".join(m[:3]) + m[3][:100],
    "cut at a member boundary": lambda m: b"".join(m[:3]),
    "one end block of two": lambda m: b"".join(m[:3]) + END[:HEADER],
    "garbage in a later header": lambda m: b"".join(m[:3]) + garbage_header() + m[3][HEADER:] + m[4] + END,
}


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
    assert [result.failed is None for result in results] == [False, False, False]
    assert "none of its 3 samples gave a row; 3 of 3 faults" in (results[0].failed or "")
    assert "no samples" in (results[1].failed or "")
    assert [result.rows for result in results] == [0, 0, 0]
    assert not list((tmp_path / "out").glob("scores/*"))
    # Why is said sample by sample, although there is no table.
    listed = [(error["shard"], error["sample_key"]) for error in errors_of(tmp_path / "out")]
    assert sorted(listed, key=str) == sorted(
        [*((str(labels), f"k{i}") for i in range(3)), (str(text), None)], key=str
    )


def test_a_wrong_image_field_never_passes_for_success(teacher: str, tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.tar", photo_samples(3, height=40, width=40))
    (result,) = scored([path], tmp_path / "wrong", teacher, image_field="image.jpg")
    assert "jpg, cls" in (result.failed or "")
    (result,) = scored([path], tmp_path / "right", teacher, image_field=" .JPG ; png")
    assert (result.failed, result.rows) == (None, 6)
