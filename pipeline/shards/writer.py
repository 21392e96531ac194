"""Writes shards, member by member: the same bytes for the same members.

`ShardWriter` makes shards of whole samples; `PrunedTar` writes pruned ones, and knows the digest of what it wrote.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from patchsieve.pipeline.shards.tar_stream import BLOCK
from patchsieve.pipeline.storage import commit_file


class ShardWriter:
    """Writes one shard to a local path, sample by sample; a context manager. `commit` puts it in its place.

    Members carry no time, owner or other trace of the machine.
    """

    def __init__(self, local_path: Path) -> None:
        self.samples = 0
        self._local_path = local_path
        self._archive = tarfile.open(local_path, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 (closed below)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._archive.close()

    def add(self, key: str, fields: Mapping[str, bytes]) -> None:
        """Add the members `<key>.<field>`; ValueError for a key that would be read back as another one."""
        if not key or "." in key.rpartition("/")[2]:
            raise ValueError(f"key {key!r} is empty or has a dot in its base name, where the field begins")
        for field, data in fields.items():
            member = tarfile.TarInfo(f"{key}.{field}")
            member.size = len(data)
            self._archive.addfile(member, io.BytesIO(data))
        self.samples += 1

    def commit(self, url: str, *, run_id: str) -> None:
        """Finish the archive and put it under its final name; errors as `storage.commit_file`."""
        self._archive.close()
        commit_file(self._local_path, url, run_id=run_id)


# Not `tarfile.open`: it fills up to 10 KiB, and would have to be read again for the digest.
_END = bytes(2 * BLOCK)


class PrunedTar:
    """A tar on local scratch; a context manager that writes the end marker when it is left without an exception.

    Members are files of mode 0644 without owner or time; names that are long or not ASCII go into pax headers. After
    the end `size` (bytes) and `sha256` (hex) are those of the whole file.
    """

    def __init__(self, path: Path) -> None:
        self.size = 0
        self.sha256 = ""
        self._digest = hashlib.sha256()
        local_path = path
        self._file = open(local_path, "wb")  # noqa: SIM115 (closed in __exit__)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if kind is None:
                self._write(_END)
                self.sha256 = self._digest.hexdigest()

    def add(self, name: str, data: bytes) -> None:
        """Write a member; ValueError for a name that is empty or holds a NUL."""
        if not name or "\0" in name:
            raise ValueError(f"{name!r} is no name of a member")
        member = tarfile.TarInfo(name)
        member.size = len(data)
        self._write(member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
        self._write(data)
        self._write(bytes(-len(data) % BLOCK))

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)
