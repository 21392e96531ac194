"""Reading with a known length: all bytes that the store reports for an object, or an InfrastructureError."""

from __future__ import annotations

import io
from types import TracebackType
from typing import Any, Self

from patchsieve.pipeline.errors import InfrastructureError, UserError
from patchsieve.pipeline.storage.lookup import ObjectInfo, is_http, stat
from patchsieve.pipeline.storage.retry import ATTEMPTS
from patchsieve.pipeline.storage.sources import RANGE_BLOCK, chunks_of, fetch_range, fetch_small
from patchsieve.pipeline.storage.urls import canonical_url, is_local

READ_LIMIT = 64 * 2**20
"""Bytes of a small object, where nothing else is said."""


def _known_size(info: ObjectInfo) -> int:
    if info.is_folder:
        raise UserError(f"{canonical_url(info.url)} is a folder, not a file")
    if info.size is None:
        raise UserError(
            f"{canonical_url(info.url)}: the server does not tell the length, so the end could not be told "
            "from a connection that broke off; copy the file to another store"
        )
    return info.size


class ByteStream:
    """An object read once from `start` to its end, or to `stop`; a context manager.

    `read(n)` gives exactly n bytes, or all that are left up to there of the `size` bytes that the store reported, so
    b"" only at the end. Every fault, a store that gives fewer bytes among them, is an InfrastructureError.
    """

    def __init__(self, info: ObjectInfo, *, start: int = 0, stop: int | None = None) -> None:
        self.info = info
        self.size = _known_size(info)
        self.position = min(start, self.size)
        self._stop = self.size if stop is None else min(stop, self.size)
        self._rest = memoryview(b"")
        self._chunks = chunks_of(info.url, self.position, self._stop, self.size)

    def read(self, count: int) -> bytes:
        """The next `count` bytes, fewer only at the end."""
        missing = min(count, self._stop - self.position)
        parts: list[memoryview] = []
        while missing > 0:
            if not self._rest:
                self._rest = memoryview(self._next_chunk())
            part = self._rest[:missing]
            self._rest = self._rest[len(part) :]
            self.position += len(part)
            missing -= len(part)
            parts.append(part)
        return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)

    def _next_chunk(self) -> bytes:
        try:
            chunk = next(self._chunks, b"")
        except FileNotFoundError:
            raise InfrastructureError(
                f"{canonical_url(self.info.url)} was removed while it was read"
            ) from None
        if not chunk:
            raise InfrastructureError(
                f"{canonical_url(self.info.url)} broke off after {self.position} of {self.size} bytes"
            )
        return chunk

    def check_unchanged(self) -> None:
        """Raise InfrastructureError if the object is no longer the one that was opened."""
        try:
            now = stat(self.info.url)
        except FileNotFoundError:
            raise InfrastructureError(
                f"{canonical_url(self.info.url)} was removed while it was read"
            ) from None
        if now != self.info:
            raise InfrastructureError(f"{canonical_url(self.info.url)} changed while it was read")

    def close(self) -> None:
        """Let go of file, connection and thread; safe to call twice."""
        self._chunks.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class RandomAccessFile(io.RawIOBase):
    """A seekable, read-only file over an object; a read is a request, a fault an InfrastructureError."""

    def __init__(self, info: ObjectInfo) -> None:
        super().__init__()
        self._url = info.url
        self._size = _known_size(info)
        self._position = 0

    def read(self, size: int | None = -1) -> bytes:
        """The next `size` bytes, fewer at the end; all that is left by default."""
        stop = self._size if size is None or size < 0 else min(self._size, self._position + size)
        if stop <= self._position:
            return b""
        data = fetch_range(self._url, self._position, stop)
        self._position = stop
        return data

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer as far as the object goes."""
        target = memoryview(buffer).cast("B")
        data = self.read(len(target))
        target[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a place of the object."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        """The place in the object."""
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def open_stream(url: str, *, start: int = 0) -> ByteStream:
    """A stream over an object as it is now; errors as in `stat`, UserError where its length is unknown."""
    return ByteStream(stat(url), start=start)


def read_bytes(url: str, *, limit: int = READ_LIMIT) -> bytes:
    """A whole small object. Raises FileNotFoundError, UserError above `limit` bytes, InfrastructureError."""
    attempts = ATTEMPTS
    while True:
        attempts -= 1
        with open_stream(url) as stream:
            if stream.size > limit:
                raise UserError(
                    f"{canonical_url(url)} has {stream.size} bytes, more than {limit} allowed here"
                )
            try:
                data = _read_whole(stream)
            except InfrastructureError:
                # What is no change has been tried again already, as often as helps.
                if not attempts or stat(url) == stream.info:
                    raise
            else:
                return data


def _read_whole(stream: ByteStream) -> bytes:
    """All bytes of one version: small records are replaced while others read them; half of each would be neither."""
    url = stream.info.url
    if 0 < stream.size <= RANGE_BLOCK and not (is_local(url) or is_http(url)):
        data = fetch_small(url, stream.size)
        if data is None:
            raise InfrastructureError(f"{canonical_url(url)} changed while it was read")
        return data
    data = stream.read(stream.size)
    stream.check_unchanged()
    return data


def read_range(url: str, start: int, stop: int) -> bytes:
    """The bytes `start` to `stop` of an object. FileNotFoundError, InfrastructureError if it has fewer."""
    return fetch_range(url, start, stop) if start < stop else b""


def parquet_source(url: str) -> RandomAccessFile:
    """An object as a file that pyarrow reads footers and row groups of; errors as in `storage.stat`."""
    return RandomAccessFile(stat(url))
