"""The tar reader: every header form that carries names and sizes, and hostile ones in bounded time and memory."""

from __future__ import annotations

import io
import time
import tracemalloc

import pytest

from patchsieve.pipeline.errors import DamagedArchiveError
from patchsieve.pipeline.shards.tar_stream import Member, TarStream
from tests.helpers.archives import END, archive, member, pax, reseal


def read(data: bytes) -> list[tuple[Member, bytes | None]]:
    stream = TarStream(io.BytesIO(data).read, len(data))
    return [(m, None if m.problem else stream.read_data()) for m in stream]


def names(data: bytes) -> list[str]:
    return [m.name for m, _ in read(data)]


def test_long_names_of_both_kinds() -> None:
    long = "d/" * 60 + "é.jpg"
    gnu = member("././@LongLink", long.encode() + b"\0", b"L") + member("cut", b"1")
    link = member("././@LongLink", b"target\0", b"K")
    assert names(link + gnu + member("after", b"2") + END) == [long, "after"]
    posix = pax({"path": long, "mtime": "1.5", "comment": "a\nb=c"}) + member("cut", b"1")
    assert names(posix + member("after", b"2") + END) == [long, "after"]
    assert names(pax({"path": long}, b"X") + member("cut") + END) == [long]


def test_ustar_prefix_only_where_posix_says_so() -> None:
    header = bytearray(member("name.jpg"))
    header[345:351] = b"folder"
    assert names(reseal(bytes(header)) + END) == ["folder/name.jpg"]
    # In GNU's own format the same bytes hold times.
    header[257:265] = b"ustar  \0"
    assert names(reseal(bytes(header)) + END) == ["name.jpg"]
    header[257:265] = bytes(8)
    assert names(reseal(bytes(header)) + END) == ["name.jpg"]


def test_sizes_in_every_form() -> None:
    header = bytearray(member("a", b"x" * 600))
    header[124:136] = b"\x80" + (600).to_bytes(11, "big")
    assert read(reseal(bytes(header[:512])) + bytes(header[512:]) + END)[0][1] == b"x" * 600
    header[124:136] = b"       1130 "
    assert read(reseal(bytes(header[:512])) + bytes(header[512:]) + END)[0][1] == b"x" * 600
    big = pax({"size": "600"}) + member("a", b"x" * 600, size=0) + member("b", b"y") + END
    assert [data for _, data in read(big)] == [b"x" * 600, b"y"]
    for field in (b"-0000000001\0", b"0o000000001\0", b"99999999999\0", b"\xff" * 12):
        header[124:136] = field
        with pytest.raises(DamagedArchiveError, match="byte 0 has no readable size"):
            read(reseal(bytes(header)) + END)


def test_checksum_of_signed_bytes_is_known() -> None:
    block = member("caf\xe9.jpg".encode("latin-1"))
    signed = sum(byte - 256 * (byte >= 128) for byte in block[:148] + block[156:]) + 8 * 32
    assert names(block[:148] + b"%06o\0 " % signed + block[156:] + END) == ["caf\udce9.jpg"]


def test_sparse_files_are_stepped_over() -> None:
    header = bytearray(member("s.jpg", b"x" * 700, b"S"))
    header[482] = 1
    more, last = bytearray(512), bytes(512)
    more[504] = 1
    old = reseal(bytes(header[:512])) + bytes(more) + last + bytes(header[512:])
    new = pax({"GNU.sparse.major": "1", "GNU.sparse.name": "t.jpg", "GNU.sparse.realsize": "99"}) + member(
        "x", b"y"
    )
    (first, _), (second, _), (after, data) = read(old + new + member("a.jpg", b"1") + END)
    assert (first.name, second.name, after.name, data) == ("s.jpg", "t.jpg", "a.jpg", b"1")
    assert first.problem == second.problem == "a sparse file, which is not read"


def test_global_headers() -> None:
    assert names(pax({"comment": "4a"}, b"g") + member("a", b"1") + END) == ["a"]
    for record in ({"path": "x"}, {"size": "9"}):
        with pytest.raises(DamagedArchiveError, match="global header at byte 0 sets"):
            read(pax(record, b"g") + member("a", b"1") + END)


BAD_PAX = [
    b"1" * 600,
    b"12",
    b"9 a=b\n",
    b"0 a=b\n",
    b"6 a=b\n3 ",
    b" a=b\n",
    b"\n\n",
    b"99 a=b\n",
    b"12 size=-1\n\n",
]
"""Bodies of pax headers that cannot be read."""


@pytest.mark.parametrize("body", BAD_PAX)
def test_unreadable_pax_headers_are_damage(body: bytes) -> None:
    with pytest.raises(DamagedArchiveError, match="pax header at byte 0"):
        read(member("p", body, b"x") + member("a") + END)


def test_hostile_headers_take_little_time_and_memory() -> None:
    small = member("a.jpg", b"1") + END
    chain = member("x", b"name" * 100, b"L") * 2000 + small
    tracemalloc.start()
    assert len(read(chain)) == 1
    assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    tracemalloc.stop()
    # What a pattern that backtracks, or a copy per record, would need minutes for.
    digits = member("p", b"1" * 2**20, b"x") + small
    records = member("p", b"6 a=b\n" * (2**20 // 6), b"x") + small
    started = time.process_time()
    with pytest.raises(DamagedArchiveError):
        read(digits)
    assert len(read(records)) == 1
    assert time.process_time() - started < 10


def test_members_that_are_not_read_are_stepped_over() -> None:
    data = archive([("a", b"1" * 3000), ("b", b"2" * 513), ("c", b"")])
    stream = TarStream(io.BytesIO(data).read, len(data))
    assert [(m.name, m.size) for m in stream] == [("a", 3000), ("b", 513), ("c", 0)]
