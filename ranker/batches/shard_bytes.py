"""Where the samples of an archive lie: read whole and hashed, or by its headers alone."""

from __future__ import annotations

import hashlib
from collections.abc import Collection

from patchsieve.pipeline import storage
from patchsieve.pipeline.errors import DamagedArchiveError
from patchsieve.pipeline.shards.reader import is_nameless, split_key
from patchsieve.pipeline.shards.tar_stream import BLOCK, TarStream, printable

_HEADER_READ = 4096

SamplePlaces = dict[int, tuple[int, int]]
"""Where samples begin and end in an archive, in bytes, by the digest of their key."""


def key_digest(sample_key: str) -> int:
    """A number of 63 bits that stands for a key."""
    digest = hashlib.blake2b(sample_key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Hashed:
    """An archive that is read whole, and its digest."""

    def __init__(self, stream: storage.ByteStream) -> None:
        self._stream = stream
        self.digest = hashlib.sha256()

    @property
    def position(self) -> int:
        """Bytes read so far."""
        return self._stream.position

    def pass_over(self, count: int) -> None:
        """Nothing to do: data are hashed as they are skipped."""

    def read(self, count: int) -> bytes:
        """The next `count` bytes, fewer at the end."""
        data = self._stream.read(count)
        self.digest.update(data)
        return data


class Headers:
    """A local archive of which only headers are fetched: what is passed over reads as zeros."""

    def __init__(self, url: str, size: int) -> None:
        self._url, self._size = url, size
        self._ahead = b""
        self._passed_over = 0
        self.position = 0

    def pass_over(self, count: int) -> None:
        """The next `count` bytes need not be fetched."""
        self._passed_over = count

    def read(self, count: int) -> bytes:
        """The next `count` bytes, fewer where those end that are passed over, or the archive."""
        count = min(count, self._size - self.position)
        if self._passed_over:
            count = min(count, self._passed_over)
            self._passed_over -= count
            self.position += count
            self._ahead = self._ahead[count:]
            return bytes(count)
        if len(self._ahead) < count:
            stop = min(self._size, self.position + max(count, _HEADER_READ))
            self._ahead = storage.read_range(self._url, self.position, stop)
        data, self._ahead = self._ahead[:count], self._ahead[count:]
        self.position += count
        return data


def sample_places(archive: TarStream, source: Hashed | Headers, wanted: Collection[int]) -> SamplePlaces:
    """Where the samples of these digests of keys begin and end, in bytes; of those that are there."""
    found: SamplePlaces = {}
    current, digest, begin = "", -1, 0
    try:
        for member in archive:
            key = split_key(member.name)[0]
            # What belongs to no sample ends none.
            if key != current and not is_nameless(key):
                current, digest = key, key_digest(printable(key))
                if digest in found:
                    digest = -1  # of two samples of one key the first counts
            stop = source.position + member.size + -member.size % BLOCK
            source.pass_over(stop - source.position)
            if digest in wanted:
                found[digest] = found.get(digest, (begin, 0))[0], stop
            begin = stop
    except DamagedArchiveError:
        # Scoring took what lies before the damage, and so does this.
        pass
    return found
