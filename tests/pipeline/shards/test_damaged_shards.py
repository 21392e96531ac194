"""Damage of an archive is told and costs no sample before it; a fault of storage is never taken for damage."""

from __future__ import annotations

import hashlib
import os
import random
import tracemalloc
from pathlib import Path

import pytest

from patchsieve.pipeline.errors import ContentError, InfrastructureError
from patchsieve.pipeline.shards.reader import ShardReader, pick_image
from patchsieve.pipeline.shards.specs import Shard
from patchsieve.pipeline.storage import retry as storage_retry
from tests.helpers.archives import END, SAMPLE_BYTES, WHOLE, archive, expected, member, read_all, shard_of
from tests.helpers.servers import Trouble, serve_files


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_retry, "FIRST_DELAY_S", 0.001)


def with_garbage_at(offset: int) -> bytes:
    return WHOLE[:offset] + b"\xde\xad\xbe\xef" * 128 + WHOLE[offset + 512 :]


DAMAGED = {
    # name: (bytes, complete samples before the damage, a sample that is begun, words of the reason)
    "cut in data": (WHOLE[: 2 * SAMPLE_BYTES + 512 + 100], 2, True, "inside 'dir/s2.jpg': 924 bytes"),
    "cut in padding": (archive([("a.jpg", b"x" * 600)])[: 512 + 700], 0, True, "right behind 'a.jpg'"),
    "cut in a header": (WHOLE[: 2 * SAMPLE_BYTES + 200], 2, False, "inside the header at byte 6144"),
    "cut between members": (WHOLE[: 2 * SAMPLE_BYTES], 2, False, "end marker is missing"),
    "no end marker": (WHOLE[: -len(END)], 4, False, "end marker is missing"),
    "garbage in a later header": (
        with_garbage_at(2 * SAMPLE_BYTES),
        2,
        False,
        "no valid header at byte 6144",
    ),
    "garbage from the start": (with_garbage_at(0), 0, False, "not a tar archive"),
    "all garbage": (random.Random(1).randbytes(5000), 0, False, "not a tar archive"),
    "zero bytes": (b"", 0, False, "empty"),
    "shorter than a header": (b"x" * 100, 0, False, "inside the header at byte 0"),
    "zeros inside": (
        WHOLE[: 2 * SAMPLE_BYTES] + bytes(512) + WHOLE[2 * SAMPLE_BYTES + 512 :],
        2,
        False,
        "data follows the end marker at byte 6144",
    ),
    "two archives joined": (WHOLE + archive([("z.jpg", b"z")]), 4, False, "joined archives"),
    "gzip": (b"\x1f\x8b\x08\0" + bytes(2000), 0, False, "gzip data"),
    "a web page": (b"<!DOCTYPE html><html>" + b" " * 600, 0, False, "a web page"),
    "size beyond the end": (
        WHOLE[:SAMPLE_BYTES] + member("b.jpg", b"b" * 512, size=10 * 2**30) + END,
        1,
        True,
        "inside 'b.jpg'",
    ),
    "long name of 10 GB": (
        WHOLE[:SAMPLE_BYTES] + member("x", b"n" * 512, b"L", size=10 * 2**30) + END,
        1,
        False,
        "claims 10737418240 bytes",
    ),
    "cut behind a long name": (WHOLE[:SAMPLE_BYTES] + member("x", b"name.jpg", b"L"), 1, False, "end marker"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_told_and_costs_no_sample_before_it(tmp_path: Path, case: str) -> None:
    data, complete, begun, words = DAMAGED[case]
    shard = shard_of(tmp_path / "a.tar", data)
    tracemalloc.start()
    samples, faults, reader = read_all(shard)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert reader.damaged
    assert len(samples) == complete + begun
    if data[:512] == WHOLE[:512]:
        assert samples[:complete] == expected(range(complete))
    assert [(f.sample_key, f.member, f.stage) for f in faults] == [(None, None, "archive")]
    assert words in faults[0].reason
    # Size and hash cover the whole object, so that it is known again.
    assert (reader.size, reader.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert peak < 8 * 2**20


def test_sample_whose_image_is_cut_off_is_told(tmp_path: Path) -> None:
    data = archive([("a.cls", b"1"), ("a.jpg", b"x" * 5000)])[: 1024 + 512 + 1000]
    samples, _, _ = read_all(shard_of(tmp_path / "a.tar", data))
    assert samples[0].fields == {"cls": b"1"}
    with pytest.raises(ContentError, match=r"a\.jpg: the archive breaks off inside this member"):
        pick_image(samples[0], "jpg")


def test_one_zero_block_is_an_end_and_more_zeros_are_too(tmp_path: Path) -> None:
    for zeros in (512, 1024, 10240):
        samples, faults, reader = read_all(shard_of(tmp_path / "a.tar", WHOLE[:-1024] + bytes(zeros)))
        assert (len(samples), faults, reader.damaged) == (4, [], False)


def test_random_damage_never_costs_what_came_before_it(tmp_path: Path) -> None:
    generator = random.Random(7)
    path = tmp_path / "a.tar"
    for _ in range(300):
        data = bytearray(WHOLE)
        first = len(data)
        for _ in range(generator.randrange(1, 4)):
            at = generator.randrange(len(data))
            data[at] ^= 1 << generator.randrange(8)
            first = min(first, at)
        if generator.random() < 0.3:
            del data[max(first, generator.randrange(len(data))) :]
        path.write_bytes(data)
        samples, faults, reader = read_all(Shard(str(path), "a", "a", len(data), ""))
        untouched = min(first, len(data)) // SAMPLE_BYTES
        assert samples[:untouched] == expected(range(min(untouched, 4)))
        assert reader.damaged == any(f.stage == "archive" for f in faults)
        assert reader.sha256 == hashlib.sha256(data).hexdigest()


def test_a_store_that_breaks_off_is_no_damage() -> None:
    with serve_files() as server:
        server.files["/a.tar"] = WHOLE
        shard = Shard(server.url("/a.tar"), "a", "a", len(WHOLE), "")
        server.troubles["/a.tar"] = [Trouble("cut", 2 * SAMPLE_BYTES), Trouble("reset", 600)]
        samples, faults, reader = read_all(shard)
        assert (samples, faults) == (expected(range(4)), [])
        assert reader.sha256 == hashlib.sha256(WHOLE).hexdigest()
        # A cut exactly between two members looks like a missing end marker to whoever does not count.
        server.ranges = False
        server.forever["/a.tar"] = Trouble("cut", 2 * SAMPLE_BYTES)
        with pytest.raises(InfrastructureError, match=r"broke off after \d+ of \d+ bytes"):
            read_all(shard)


@pytest.mark.parametrize("change", ["replace", "grow", "truncate", "remove"])
def test_object_that_changes_or_vanishes_while_it_is_read(tmp_path: Path, change: str) -> None:
    path = tmp_path / "a.tar"
    shard = shard_of(path, WHOLE)
    other = tmp_path / "other"
    other.write_bytes(WHOLE)
    os.utime(other, ns=(1, 1))

    def read_and_change() -> None:
        with ShardReader(shard) as reader:
            items = iter(reader)
            next(items)
            if change == "replace":
                os.replace(other, path)
            elif change == "grow":
                os.truncate(path, len(WHOLE) + 1)
            elif change == "truncate":
                os.truncate(path, 3000)
            else:
                path.unlink()
            list(items)

    with pytest.raises(InfrastructureError, match="while it was read"):
        read_and_change()


def test_object_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError, match="not there any more"):
        ShardReader(Shard(str(tmp_path / "a.tar"), "a", "a", 1, "")).__enter__()
