"""Tar archives built byte by byte, so that tests can damage them where they like; independent of our reader."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

from patchsieve.pipeline.shards.reader import Fault, Sample, ShardReader
from patchsieve.pipeline.shards.specs import Shard, expand_shards

END = bytes(1024)


def member(name: str | bytes, data: bytes = b"", kind: bytes = b"0", *, size: int | None = None) -> bytes:
    """Header and padded data of one member; `size` claims another length than the data has."""
    raw = name.encode() if isinstance(name, str) else name
    claimed = len(data) if size is None else size
    header = bytearray(512)
    header[: len(raw[:100])] = raw[:100]
    header[100:124] = b"0000644\0" + b"0000000\0" * 2
    # Octal holds sizes below 8 GiB, GNU's binary form any other.
    header[124:136] = b"%011o\0" % claimed if claimed < 8**11 else b"\x80" + claimed.to_bytes(11, "big")
    header[136:148] = b"00000000000\0"
    header[156:157] = kind
    header[257:265] = b"ustar\00000"
    return reseal(bytes(header)) + data + bytes(-len(data) % 512)


def reseal(block: bytes) -> bytes:
    """The header with the checksum of its bytes."""
    total = sum(block[:148]) + sum(block[156:512]) + 8 * 32
    return block[:148] + b"%06o\0 " % total + block[156:]


def pax(records: dict[str, str | bytes], kind: bytes = b"x") -> bytes:
    """A pax header with these records."""
    body = b""
    for keyword, value in records.items():
        raw = value.encode() if isinstance(value, str) else value
        tail = b" " + keyword.encode() + b"=" + raw + b"\n"
        length = len(tail) + 1
        while len(str(length)) + len(tail) != length:
            length += 1
        body += str(length).encode() + tail
    return member("pax-header", body, kind)


def archive(members: Iterable[tuple[str, bytes]]) -> bytes:
    """A sound archive of these members."""
    return b"".join(member(name, data) for name, data in members) + END


def written_by_tarfile(members: Iterable[tuple[str, bytes]], form: int) -> bytes:
    """The same written by the standard library, in one of its formats."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def apart(archive: Path, path: Path) -> Path:
    """The members of a shard in another one, by their fields: last the first images, whose samples begin before."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(archive) as source, tarfile.open(path, "w") as target:
        members = sorted(source.getmembers(), key=lambda member: member.name.partition(".")[2])
        cut = len(members) * 7 // 10
        for one in [*members[cut:], *members[:cut]]:
            target.addfile(one, source.extractfile(one) if one.isreg() else None)
    return path


def shard_of(path: Path, data: bytes) -> Shard:
    """A shard of these bytes."""
    path.write_bytes(data)
    return expand_shards([str(path)])[0]


def read_all(shard: Shard, **options) -> tuple[list[Sample], list[Fault], ShardReader]:
    """Everything a reader gives, in order within samples and faults."""
    samples: list[Sample] = []
    faults: list[Fault] = []
    with ShardReader(shard, **options) as reader:
        for item in reader:
            if isinstance(item, Sample):
                samples.append(item)
            else:
                faults.append(item)
    return samples, faults, reader


# Four samples of two members each; every member is 512 bytes of header and 1,024 of data.
GOOD = [(f"dir/s{n}.{field}", bytes([n, ord(field[0])]) * 512) for n in range(4) for field in ("jpg", "cls")]
WHOLE = archive(GOOD)
SAMPLE_BYTES = 2 * (512 + 1024)


def expected(numbers: range) -> list[Sample]:
    """The samples of GOOD by an independent rule."""
    samples = []
    for n in numbers:
        fields = {field: bytes([n, ord(field[0])]) * 512 for field in ("jpg", "cls")}
        samples.append(Sample(f"dir/s{n}", fields, {field: f"dir/s{n}.{field}" for field in fields}))
    return samples
