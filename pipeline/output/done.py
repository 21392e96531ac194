"""Which shards are done: those whose record file has the identity asked for and the content they have now.

Reading the footers of 100,000 files takes minutes on an object store, so what they said is kept in one file,
which may be deleted at any time: an entry counts only while the store tells the same size and tag of the
record file.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from patchsieve.pipeline import storage
from patchsieve.pipeline.checks import typed
from patchsieve.pipeline.errors import DamagedFileError, InfrastructureError, UserError
from patchsieve.pipeline.output.records import Record, read_footer
from patchsieve.pipeline.shards.specs import Shard
from patchsieve.pipeline.threads import map_threads

_SUFFIX = ".parquet"
_READ_BYTES = 2**23
_CACHE_LIMIT = 2**30

_log = logging.getLogger(__name__)


class State(enum.Enum):
    """What is known of one shard. NEEDS_HASH: same size, other tag; only its SHA-256 can tell."""

    DONE = "done"
    MISSING = "missing"
    CHANGED = "changed"
    NEEDS_HASH = "needs hash"


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """State of one shard; `record` is the one found, of older content too, None where it is MISSING."""

    state: State
    record: Record | None


def compare(shard: Shard, record: Record, *, known_tag: str = "") -> State:
    """Whether the shard still has the content of the record, as far as size and tag can tell.

    `known_tag`: another tag under which the shard was found to have this content.
    """
    if shard.size is not None and shard.size != record.size:
        return State.CHANGED
    # A store that tells no tag tells nothing: two empty tags are not the same tag.
    if shard.tag and shard.tag in (record.tag, known_tag):
        return State.DONE
    return State.NEEDS_HASH


def same_content(shard: Shard, record: Record) -> bool:
    """Read the whole shard and compare its SHA-256; raises InfrastructureError where it cannot be read."""
    return content_digest(shard.url) == record.sha256


def content_digest(url: str) -> str:
    """SHA-256, in hex, of a whole file; raises InfrastructureError where it cannot be read."""
    digest = hashlib.sha256()
    with storage.open_stream(url) as stream:
        while chunk := stream.read(_READ_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


@dataclasses.dataclass(slots=True)
class _Entry:
    """What is kept of one record file: size and tag of the file itself, and what its footer said."""

    file_size: int
    file_tag: str
    known_tag: str
    record: Record


_CACHE_SCHEMA = pa.schema(
    [("file", pa.string()), ("file_size", pa.int64()), ("file_tag", pa.string()), ("known_tag", pa.string())]
    + [
        (field.name, {"int": pa.int64(), "bool": pa.bool_()}.get(str(field.type), pa.string()))
        for field in dataclasses.fields(Record)
    ]
)
_RECORD_FIELDS = [field.name for field in dataclasses.fields(Record)]


class RecordFolder:
    """The record files below one folder, by file name; knows those that it has read before."""

    def __init__(self, url: str, cache_url: str, *, newest_schema: int | None) -> None:
        self.url, self._cache_url, self._newest_schema = url, cache_url, newest_schema
        self._entries: dict[str, _Entry] | None = None
        self._stale = False

    def read(
        self, names: Iterable[str] | None = None, check: Callable[[], None] = lambda: None
    ) -> dict[str, Record]:
        """Records by file name, all of them or those of `names`; what is missing or unreadable is left out.

        `check` is called before each footer that is read. Raises what it does, InfrastructureError where the store
        fails, UserError for a file of a newer schema.
        """
        # First, since what a client holds of a long listing while it comes takes more memory than all entries.
        listed = {
            storage.split_name(info.url)[1]: info for info in storage.list_folder(self.url, suffix=_SUFFIX)
        }
        entries = self._load_cache()
        wanted = listed.keys() if names is None else [name for name in names if name in listed]
        fresh = [name for name in wanted if not _is_current(entries.get(name), listed[name])]

        def read(name: str) -> Record | None:
            check()
            return self._read(listed[name])

        found = map_threads(read, fresh)
        for name, record in zip(fresh, found, strict=True):
            info = listed[name]
            entries.pop(name, None)
            self._stale = True
            if record is not None:
                entries[name] = _Entry(info.size or 0, info.tag, "", record)
        return {name: entries[name].record for name in wanted if name in entries}

    def check(self, shards: Sequence[Shard], identity: str) -> dict[str, Check]:
        """State of every shard, by shard id; errors as in `read`."""
        records = self.read(f"{shard.id}{_SUFFIX}" for shard in shards)
        checks = {}
        for shard in shards:
            name = f"{shard.id}{_SUFFIX}"
            record = records.get(name)
            if record is None or record.identity != identity or record.name != shard.name:
                checks[shard.id] = Check(State.MISSING, None)
            else:
                known_tag = self._load_cache()[name].known_tag
                checks[shard.id] = Check(compare(shard, record, known_tag=known_tag), record)
        return checks

    def remember_same(self, shard: Shard) -> None:
        """Keep in mind that the shard, under its present tag, has the content of its record."""
        entry = self._load_cache().get(f"{shard.id}{_SUFFIX}")
        if entry is not None and shard.tag:
            entry.known_tag = shard.tag
            self._stale = True

    def save_cache(self, *, run_id: str) -> None:
        """Write what was read, for later runs; only the owner of the folder calls this."""
        if not self._stale:
            return
        entries = self._load_cache()
        rows = [
            {
                "file": name,
                "file_size": entry.file_size,
                "file_tag": entry.file_tag,
                "known_tag": entry.known_tag,
                **{field: getattr(entry.record, field) for field in _RECORD_FIELDS},
            }
            for name, entry in entries.items()
        ]
        local_buffer = pa.BufferOutputStream()
        made = pa.Table.from_pylist(rows, _CACHE_SCHEMA)
        pq.write_table(made, local_buffer, compression="zstd", write_page_checksum=True)
        storage.commit_bytes(local_buffer.getvalue().to_pybytes(), self._cache_url, run_id=run_id)
        self._stale = False

    def _read(self, info: storage.ObjectInfo) -> Record | None:
        try:
            return read_footer(info.url, size=info.size, newest_schema=self._newest_schema).record()
        except FileNotFoundError:
            return None
        except DamagedFileError as error:
            _log.warning("%s; its shard counts as missing", error)
            return None

    def add_cache(self, url: str) -> None:
        """Take in what another run has kept, too."""
        self._load_cache().update(_known(url))

    def _load_cache(self) -> dict[str, _Entry]:
        if self._entries is None:
            self._entries = _known(self._cache_url)
        return self._entries


def _known(url: str) -> dict[str, _Entry]:
    """What a cache file holds, as far as there is one that can be read."""
    try:
        return _read_cache(url)
    except FileNotFoundError:
        pass
    except DamagedFileError as error:
        _log.warning("%s; it is made again", error)
    return {}


def _read_cache(url: str) -> dict[str, _Entry]:
    """What a cache file holds; nothing for one of another release."""
    entries: dict[str, _Entry] = {}
    with storage.parsing(url):
        data = pa.BufferReader(storage.read_bytes(url, limit=_CACHE_LIMIT))
        table = pq.read_table(data, page_checksum_verification=True)
        if table.schema.equals(_CACHE_SCHEMA):
            for batch in table.to_batches(1000):
                entries.update(_entry(row) for row in batch.to_pylist())
    return entries


def _entry(row: dict[str, Any]) -> tuple[str, _Entry]:
    record = typed(Record, {field: row[field] for field in _RECORD_FIELDS})
    values = {name: row[name] for name in ("file_size", "file_tag", "known_tag")}
    return row["file"], typed(_Entry, {**values, "record": record})


def _is_current(entry: _Entry | None, info: storage.ObjectInfo) -> bool:
    return entry is not None and bool(info.tag) and (entry.file_size, entry.file_tag) == (info.size, info.tag)


def hash_check(shard: Shard, check: Check) -> Check:
    """Settle a NEEDS_HASH by reading the shard; where it cannot be read now, the state stays as it is."""
    if check.state is not State.NEEDS_HASH or check.record is None:
        return check
    try:
        same = same_content(shard, check.record)
    except (InfrastructureError, UserError, FileNotFoundError) as error:
        _log.warning("%s cannot be compared with its record: %s", shard.name, error)
        return check
    return Check(State.DONE if same else State.CHANGED, check.record)
