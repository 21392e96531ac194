"""Reading a tar archive as it streams by: ustar, GNU and pax, one member at a time, in bounded memory.

Why not `tarfile`: it takes any block of zeros for the end, so that what follows is lost without a word; it calls
itself once per extended header and keeps every member; and up to Python 3.11.9 and 3.12.5 it needs minutes for
a pax header of a megabyte (CVE-2024-6232). Tests compare the two on sound archives.

Format: POSIX.1-2017, `pax`, "ustar Interchange Format" and "pax Header Block"; the GNU tar manual for L, K and S.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from patchsieve.pipeline.errors import DamagedArchiveError

BLOCK = 512
SKIP_CHUNK = 2**20
# A long name or a pax header beyond this is no name any more; it is held in memory while it is parsed.
HEADER_LIMIT = 2**20

_REGULAR = {b"0", b"\0", b"7"}
_LONG_NAME, _LONG_LINK, _SPARSE, _GLOBAL = b"L", b"K", b"S", b"g"
_PAX = {b"x", b"X"}
# Folders, volume labels and the lists of names in incremental backups: no data of a sample is lost with them.
_HARMLESS = {b"5", b"V", b"D"}
_NO_DATA = {
    b"1": "a hard link, not a file",
    b"2": "a symbolic link, not a file",
    b"3": "a device, not a file",
    b"4": "a device, not a file",
    b"5": "a folder",
    b"6": "a pipe, not a file",
}
_OTHER_FORMATS = {
    b"\x1f\x8b": "gzip data",
    b"BZh": "bzip2 data",
    b"\xfd7zXZ\0": "xz data",
    b"\x28\xb5\x2f\xfd": "zstd data",
    b"PK\x03\x04": "a zip archive",
    b"<!DOCTYPE": "a web page",
    b"<html": "a web page",
    b"version https://git-lfs": "a Git LFS pointer",
}
_OCTAL = re.compile(rb"[0-7]+")


@dataclass(frozen=True, slots=True)
class Member:
    """One member: undecodable bytes of its name are surrogates; `problem` says why its data cannot be had."""

    name: str
    size: int
    problem: str | None


@dataclass(slots=True)
class _Extended:
    """What extended headers say of the member that follows them."""

    name: bytes | None = None
    size: int | None = None
    sparse: bool = False


def printable(name: str) -> str:
    """A member name as valid UTF-8: other bytes are written as `\\xNN`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class TarStream:
    """The members of an archive of `size` bytes; `read(n)` gives n bytes, or all that are left of it.

    Iterating yields every member that may matter to a sample and ends after the end marker and the zeros behind
    it. Raises DamagedArchiveError where the archive breaks off or cannot be read on; a missing end marker and
    data behind the marker are damage too.
    """

    def __init__(self, read: Callable[[int], bytes], size: int) -> None:
        self._source = read
        self._size = size
        self._at = 0
        self._name = ""
        self._data_left = 0
        self._padding = 0

    def __iter__(self) -> Iterator[Member]:
        while (member := self._next()) is not None:
            yield member

    def read_data(self) -> bytes:
        """All data of the member yielded last; it must have no `problem`."""
        data = self._read(self._data_left)
        self._data_left = 0
        return data

    def _read(self, count: int) -> bytes:
        data = self._source(count)
        self._at += len(data)
        return data

    def _skip(self, count: int) -> None:
        while count > 0:
            count -= len(self._read(min(count, SKIP_CHUNK)))

    def _finish_member(self) -> None:
        left = self._size - self._at
        if self._data_left > left:
            raise DamagedArchiveError(
                f"the archive breaks off inside {self._name!r}: {self._data_left - left} bytes of it are missing"
            )
        if self._data_left + self._padding > left:
            raise DamagedArchiveError(f"the archive breaks off right behind {self._name!r}")
        self._skip(self._data_left + self._padding)
        self._data_left = self._padding = 0

    def _next(self) -> Member | None:
        self._finish_member()
        extended = _Extended()
        while True:
            start = self._at
            header = self._read(BLOCK)
            if header.count(0) == len(header) == BLOCK:
                self._end(start)
                return None
            self._check(header, start)
            kind = header[156:157]
            size = _number(header[124:136], start)
            if kind in {_LONG_NAME, _LONG_LINK, _GLOBAL} | _PAX:
                self._extend(extended, kind, self._header_data(size, start), start)
                continue
            if kind == _SPARSE:
                extended.sparse = True
                self._skip_sparse_map(header)
            member = self._member(header, kind, size, extended)
            if member is not None:
                return member
            self._finish_member()
            extended = _Extended()

    def _member(self, header: bytes, kind: bytes, size: int, extended: _Extended) -> Member | None:
        name = (extended.name if extended.name is not None else _ustar_name(header)).decode(
            "utf-8", "surrogateescape"
        )
        size = size if extended.size is None else extended.size
        if kind == b"\0" and name.endswith("/"):
            kind = b"5"  # how a folder was written before there was a type for it
        self._name = printable(name)[:200]
        self._data_left = 0 if kind in _NO_DATA else size
        self._padding = -self._data_left % BLOCK
        if kind in _HARMLESS:
            return None
        problem = _NO_DATA.get(kind)
        if extended.sparse:
            problem = "a sparse file, which is not read"
        elif problem is None and kind not in _REGULAR:
            problem = f"a member of unknown type {kind!r}"
        elif self._data_left > self._size - self._at:
            problem = "the archive breaks off inside this member"
        return Member(name, self._data_left, problem)

    def _end(self, start: int) -> None:
        """Read what follows the first zero block of the end marker; a second one is usual, but not waited for."""
        while data := self._read(SKIP_CHUNK):
            if data.count(0) != len(data):
                raise DamagedArchiveError(
                    f"data follows the end marker at byte {start}: zeros inside the archive, or joined archives"
                )

    def _check(self, header: bytes, start: int) -> None:
        if not header:
            if start == 0:
                raise DamagedArchiveError("the file is empty")
            raise DamagedArchiveError(f"the end marker is missing: the archive breaks off at byte {start}")
        for magic, what in _OTHER_FORMATS.items():
            if start == 0 and header.startswith(magic):
                raise DamagedArchiveError(f"{what}, not a plain tar archive")
        if len(header) < BLOCK:
            raise DamagedArchiveError(f"the archive breaks off inside the header at byte {start}")
        if not _checksum_holds(header):
            what = "not a tar archive: there is" if start == 0 else "there is"
            raise DamagedArchiveError(f"{what} no valid header at byte {start}")

    def _header_data(self, size: int, start: int) -> bytes:
        if size > HEADER_LIMIT:
            raise DamagedArchiveError(f"the extended header at byte {start} claims {size} bytes")
        data = self._read(size)
        if len(data) < size or -size % BLOCK > self._size - self._at:
            raise DamagedArchiveError(f"the archive breaks off inside the extended header at byte {start}")
        self._skip(-size % BLOCK)
        return data

    def _skip_sparse_map(self, header: bytes) -> None:
        more = header[482]
        while more:
            start = self._at
            block = self._read(BLOCK)
            if len(block) < BLOCK:
                raise DamagedArchiveError(f"the archive breaks off inside the header at byte {start}")
            more = block[504]

    def _extend(self, extended: _Extended, kind: bytes, data: bytes, start: int) -> None:
        if kind == _LONG_NAME:
            extended.name = data.partition(b"\0")[0]
        elif kind in _PAX or kind == _GLOBAL:
            for keyword, value in _pax_records(data, start):
                if keyword not in {b"path", b"size"} and not keyword.startswith(b"GNU.sparse"):
                    continue
                if kind == _GLOBAL:
                    # It would hold for all members that follow, which no archive of files can mean.
                    raise DamagedArchiveError(f"the global header at byte {start} sets {keyword!r}")
                if keyword == b"size":
                    extended.size = _decimal(value, start)
                elif keyword in {b"path", b"GNU.sparse.name"}:
                    extended.name = value
                extended.sparse |= keyword.startswith(b"GNU.sparse")


def _checksum_holds(header: bytes) -> bool:
    field = header[148:156]
    digits = _OCTAL.match(field.lstrip(b" \0"))
    if digits is None:
        return False
    unsigned = sum(header) - sum(field) + 8 * ord(" ")
    if int(digits[0], 8) == unsigned:
        return True
    # Some old programs summed the bytes as signed numbers.
    high = sum(byte >= 128 for byte in header) - sum(byte >= 128 for byte in field)
    return int(digits[0], 8) == unsigned - 256 * high


def _ustar_name(header: bytes) -> bytes:
    name = header[:100].partition(b"\0")[0]
    # Only POSIX has the rest of a long name there; GNU keeps times in that place.
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _number(field: bytes, start: int) -> int:
    """A size: octal digits, or a binary number behind a byte of 0x80."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.partition(b"\0")[0].strip()
    if digits and not _OCTAL.fullmatch(digits):
        raise DamagedArchiveError(f"the header at byte {start} has no readable size")
    return int(digits or b"0", 8)


def _decimal(value: bytes, start: int) -> int:
    if not value.isdigit() or len(value) > 20:
        raise DamagedArchiveError(f"the pax header at byte {start} has no readable size")
    return int(value)


def _pax_records(data: bytes, start: int) -> Iterator[tuple[bytes, bytes]]:
    """The records `<length> <keyword>=<value>\\n`; the length counts all of its record."""
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 10)
        digits = data[at : max(space, at)]
        end = at + int(digits) if digits.isdigit() else at
        if end <= max(space, at) or data[end - 1 : end] != b"\n":
            raise DamagedArchiveError(f"the pax header at byte {start} cannot be read")
        keyword, _, value = data[space + 1 : end - 1].partition(b"=")
        yield keyword, value
        at = end
