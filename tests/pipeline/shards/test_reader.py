"""Streaming a shard: samples in order, keys and fields as designed, every bad sample a fault with a reason."""

from __future__ import annotations

import hashlib
import os
import random
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from patchsieve.pipeline.errors import ContentError
from patchsieve.pipeline.shards import reader as shards
from patchsieve.pipeline.shards.reader import Fault, Sample, ShardReader, pick_image
from tests.helpers.archives import END, WHOLE, archive, expected, member, read_all, shard_of


def test_whole_shard(tmp_path: Path) -> None:
    shard = shard_of(tmp_path / "a.tar", WHOLE)
    samples, faults, reader = read_all(shard)
    assert samples == expected(range(4))
    assert faults == []
    assert not reader.damaged
    assert (reader.size, reader.sha256) == (len(WHOLE), hashlib.sha256(WHOLE).hexdigest())
    assert reader.tag == shard.tag == str(os.stat(tmp_path / "a.tar").st_mtime_ns)


def test_duplicates_and_members_apart(tmp_path: Path) -> None:
    names = ["a.jpg", "a.cls", "b.jpg", "a.jpg", "a.cls", "c.jpg", "c.jpg", "c.jpg", "b.cls", "d.jpg"]
    samples, faults, reader = read_all(shard_of(tmp_path / "a.tar", archive((n, n.encode()) for n in names)))
    assert [(s.key, list(s.fields)) for s in samples] == [
        ("a", ["jpg", "cls"]),
        ("b", ["jpg"]),
        ("c", ["jpg"]),
        ("d", ["jpg"]),
    ]
    (reason,) = {fault.reason for fault in faults}
    assert reason.startswith("duplicate key: the shard had members of this key before")
    assert "tar --sort=name" in reason
    assert faults == [Fault(n[0], n, "sample", reason) for n in ("a.jpg", "c.jpg", "c.jpg", "b.cls")]
    assert not reader.damaged


def test_samples_of_an_unsorted_shard_are_collected_in_the_order_of_their_first_members(
    tmp_path: Path,
) -> None:
    names = ["b.cls", "a.jpg", "c.jpg", "b.jpg", "._a.jpg", "a.cls", "c.jpg", "c.cls", "c.txt", "b.txt"]
    shard = shard_of(tmp_path / "a.tar", archive((n, n.encode()) for n in names))
    samples, faults, reader = read_all(shard, unsorted=True)
    assert [(s.key, {field: data.decode() for field, data in s.fields.items()}) for s in samples] == [
        ("b", {"cls": "b.cls", "jpg": "b.jpg", "txt": "b.txt"}),
        ("a", {"jpg": "a.jpg", "cls": "a.cls"}),
        ("c", {"jpg": "c.jpg"}),
    ]
    nameless, duplicate = faults
    assert nameless.member == "._a.jpg"
    # A field given twice is another sample of that key, to which what follows belongs.
    assert duplicate == Fault(
        "c", "c.jpg", "sample", "duplicate key: the shard had members of this key before"
    )
    assert (reader.size, reader.damaged) == (shard.size, False)


def test_what_is_collected_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = archive((f"{n}.jpg", bytes(4000)) for n in range(3))
    shard = shard_of(tmp_path / "a.tar", data)
    held = 3 * (4000 + shards._MEMBER_BYTES + len("0.jpg"))
    monkeypatch.setattr(shards, "UNSORTED_BYTES", held)
    assert len(read_all(shard, unsorted=True)[0]) == 3
    monkeypatch.setattr(shards, "UNSORTED_BYTES", held - 1)
    samples, faults, reader = read_all(shard, unsorted=True)
    assert samples == []
    assert [(fault.stage, "tar --sort=name" in fault.reason) for fault in faults] == [("archive", True)]
    assert reader.damaged
    assert reader.sha256 == hashlib.sha256(data).hexdigest()
    # Data that nobody asked for are not held.
    assert read_all(shard, unsorted=True, keep_fields=lambda field: False)[1] == []


def test_more_of_a_sample_costs_nothing_where_nobody_asks_for_it(tmp_path: Path) -> None:
    names = ["a.jpg", "b.jpg", "a.cls", "b.cls", "b.jpg"]
    shard = shard_of(tmp_path / "a.tar", archive((n, b"1") for n in names))
    samples, faults, _ = read_all(shard, keep_fields=lambda field: field == "jpg")
    assert [sample.key for sample in samples] == ["a", "b"]
    (twice,) = faults
    assert (twice.sample_key, twice.member) == ("b", "b.cls")
    assert "tar --sort=name" in twice.reason
    assert "--unsorted" in twice.reason


def test_keys_fields_and_folders(tmp_path: Path) -> None:
    data = b"".join(
        [
            member("train/", kind=b"5"),
            member("train/a.b/x.seg.PNG", b"1"),
            member(
                "train/a.b/", kind=b"5"
            ),  # a folder, a label: no part of a sample, and none is interrupted
            member("volume", kind=b"V"),
            member("train/a.b/x.JPG", b"2"),
            member("x.JPG", b"3"),
            member("README", b"4"),
            member("./y.txt", b"5"),
            END,
        ]
    )
    samples, faults, _ = read_all(shard_of(tmp_path / "a.tar", data))
    assert [(s.key, s.fields) for s in samples] == [
        ("train/a.b/x", {"seg.PNG": b"1", "JPG": b"2"}),
        ("x", {"JPG": b"3"}),
        ("README", {"": b"4"}),
        ("./y", {"txt": b"5"}),
    ]
    assert samples[0].members == {"seg.PNG": "train/a.b/x.seg.PNG", "JPG": "train/a.b/x.JPG"}
    assert faults == []


def test_bad_names_are_told_and_never_stop_the_rest(tmp_path: Path) -> None:
    data = b"".join(
        [
            member("a.jpg", b"1"),
            member(".hidden", b"2"),
            member("d/._a.cls", b"3"),
            member("a.cls", b"4"),
            member(b"caf\xe9.jpg", b"5"),
            member(b"caf\xe9.cls", b"6"),
            member(b"b.\xff", b"7"),
            member("x", ("long/" * 1000 + "name.jpg").encode() + b"\0", b"L") + member("long", b"8"),
            member("c.jpg", b"9"),
            END,
        ]
    )
    samples, faults, _ = read_all(shard_of(tmp_path / "a.tar", data))
    assert [(s.key, s.fields) for s in samples] == [
        ("a", {"jpg": b"1", "cls": b"4"}),
        ("b", {"\\xff": b"7"}),
        ("c", {"jpg": b"9"}),
    ]
    nameless = "the name has nothing before its first dot"
    assert faults[:3] == [
        Fault(None, ".hidden", "sample", nameless),
        Fault(None, "d/._a.cls", "sample", nameless),
        Fault(None, "caf\\xe9.jpg", "sample", "the member's name is not UTF-8"),
    ]
    assert "more than 4096 characters" in faults[3].reason
    for fault in faults:
        "".join(filter(None, (fault.sample_key, fault.member, fault.reason))).encode()


def test_what_is_no_file_is_a_problem_of_its_field(tmp_path: Path) -> None:
    data = b"".join(
        [
            member("a.jpg", kind=b"2"),
            member("a.cls", b"1"),
            member("b.jpg", b"x" * 700, b"S"),
            member("c.jpg", b"y" * 700, b"Z"),
            member("d.cls", kind=b"1"),
            member("d.jpg", b"2"),
            END,
        ]
    )
    samples, faults, _ = read_all(shard_of(tmp_path / "a.tar", data))
    assert faults == []
    assert [s.problems for s in samples] == [
        {"jpg": "a symbolic link, not a file"},
        {"jpg": "a sparse file, which is not read"},
        {"jpg": "a member of unknown type b'Z'"},
        {"cls": "a hard link, not a file"},
    ]
    for sample in samples[:3]:
        with pytest.raises(ContentError, match=sample.problems["jpg"]):
            pick_image(sample, "jpg")
    assert pick_image(samples[3], "jpg") == ("jpg", b"2")


def test_memory_is_bounded_by_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MAX_MEMBERS", 3)
    large = 40 * 2**20
    data = b"".join(
        [
            member("a.jpg", bytes(large)),
            member("a.cls", b"1"),
            *(member(f"b.{n}", bytes(1000)) for n in range(5)),
            *(member(f"c.{n}", b"1") for n in range(4)),
            member("d.jpg", b"2"),
            END,
        ]
    )
    shard = shard_of(tmp_path / "a.tar", data)
    del data
    tracemalloc.start()
    samples, faults, _ = read_all(shard, member_limit=1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * 2**20
    assert samples[0].problems == {"jpg": f"{large} bytes, more than the limit of 1000"}
    assert samples[0].fields == {"cls": b"1"}
    assert [s.key for s in samples] == ["a", "d"]
    assert [(f.sample_key, f.reason) for f in faults] == [
        ("b", "more than 3 members"),
        ("c", "more than 3 members"),
    ]
    monkeypatch.undo()
    samples, _, _ = read_all(shard, member_limit=1000)
    assert list(samples[1].fields) == ["0", "1", "2", "3"]
    assert samples[1].problems == {"4": "its sample has more than the limit of 4000 bytes"}


def test_memory_is_flat_in_the_length_of_a_shard(tmp_path: Path) -> None:
    peaks = []
    for count in (1000, 4000):
        shard = shard_of(tmp_path / f"{count}.tar", archive((f"k{n}.jpg", bytes(2000)) for n in range(count)))
        tracemalloc.start()
        with ShardReader(shard) as reader:
            assert sum(isinstance(item, Sample) for item in reader) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # A digest of 16 bytes per key, in a set, is what remains.
    assert peaks[1] - peaks[0] < 3000 * 300


def test_only_fields_that_are_wanted_are_kept(tmp_path: Path) -> None:
    samples, _, reader = read_all(
        shard_of(tmp_path / "a.tar", WHOLE), keep_fields=lambda field: field == "jpg"
    )
    assert [list(s.fields) for s in samples] == [["jpg"]] * 4
    assert [list(s.members) for s in samples] == [["jpg", "cls"]] * 4
    assert reader.sha256 == hashlib.sha256(WHOLE).hexdigest()


def test_pick_image() -> None:
    fields = {"txt": b"0", "PNG": b"1", "seg.jpg": b"2", "Jpg": b"3", "jpg": b"4"}
    sample = Sample("a", fields, {field: f"a.{field}" for field in fields})
    assert pick_image(sample, "jpg;jpeg;png") == ("Jpg", b"3")
    assert pick_image(sample, "png;jpg") == ("PNG", b"1")
    assert pick_image(sample, " .seg.JPG ; ") == ("seg.jpg", b"2")
    assert pick_image(sample, "webp") is None


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_sound_archives_read_as_the_standard_library_reads_them(tmp_path: Path, form: int) -> None:
    generator = random.Random(form)
    path = tmp_path / "a.tar"
    wanted: dict[str, bytes] = {}
    with tarfile.open(path, "w", format=form) as tar:
        for n in range(60):
            folder = "/".join("f" * generator.randrange(1, 40) for _ in range(generator.randrange(4)))
            stem = "é漢 #?%" if n % 3 else "n" * generator.randrange(1, 90)
            info = tarfile.TarInfo(
                f"{folder}/{n}{stem}.jpg" if form != tarfile.USTAR_FORMAT else f"{folder}/{n}.jpg"
            )
            data = generator.randbytes(generator.randrange(2000))
            info.size, info.uid, info.mtime = len(data), n * 1000, n + 0.5
            if form == tarfile.PAX_FORMAT:
                info.pax_headers = {"comment": "x\n y=é", "LIBARCHIVE.xattr.user": "v" * n * 10}
            (tmp_path / "m").write_bytes(data)
            with open(tmp_path / "m", "rb") as source:
                tar.addfile(info, source)
    with tarfile.open(path) as tar:
        for info in tar:
            file = tar.extractfile(info)
            assert file is not None
            wanted[info.name] = file.read()
    samples, faults, reader = read_all(shard_of(tmp_path / "b.tar", path.read_bytes()))
    assert (faults, reader.damaged) == ([], False)
    assert {name: s.fields[f] for s in samples for f, name in s.members.items()} == wanted
    assert len(wanted) == 60
