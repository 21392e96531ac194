"""Writes a shard: a tar archive of samples, the same bytes for the same samples."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

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
