"""Reads score tables: one, several, or the output folder of a run; whole or in bounded memory."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from patchsieve.pipeline import storage
from patchsieve.pipeline.checks import typed
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.identity import canonical_json
from patchsieve.pipeline.output.records import RecordFooter, read_footer
from patchsieve.pipeline.row_config import RowConfig
from patchsieve.pipeline.tables.schema import SCORES, TeacherRecord, table_schema
from patchsieve.pipeline.threads import map_threads

TABLE_SUFFIX = ".parquet"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TableFile:
    """One table: its rows, the content of its shard, and its views `first_view` to `last_view` - 1.

    `size` in bytes and `sha256` are the shard's, `identity` that of the rows (`schema.row_identity`). `teacher` is
    name and digest, `grid` patches along a side, `visible` V, `columns` their names, `settings` those that decided the
    rows, as JSON (fields of `RowConfig`).
    """

    url: str
    rows: int
    row_groups: int
    shard: str
    size: int
    sha256: str
    identity: str
    first_view: int
    last_view: int
    teacher: str
    grid: int
    visible: int
    columns: tuple[str, ...]
    settings: str

    @property
    def images(self) -> float:
        """How many images it has rows of, about: some may lack a view."""
        return self.rows / max(1, self.last_view - self.first_view)


class ScoreTables:
    """Score tables that belong together: one teacher, one grid, one number of visible patches, no row twice.

    `files`: the tables, in the order given and by name within a folder; `teacher`: the teacher's metadata
    (name, digest, grid, patch_size, heads, output_space, licence); `visible`: V; `schema`: columns of the
    first table, which others may lack (`patches`, `pixels`).
    """

    def __init__(self, sources: str | Sequence[str]) -> None:
        """`sources`: tables (`.parquet`) and output folders, by path or URL.

        Raises UserError where there is no table, one cannot be read, or they do not belong together.
        """
        given = [sources] if isinstance(sources, str) else list(sources)
        if not given:
            raise UserError("no score table given")
        found = [entry for source in given for entry in _tables_of(source)]
        self.files = map_threads(_table_file, found)
        _check_agreement(self.files)
        _check_overlap(self.files)
        first = _table_footer(found[0])
        self.teacher: dict[str, Any] = first.metadata["teacher"]
        self.visible = self.files[0].visible
        self.schema: pa.Schema = first.schema

    @property
    def rows(self) -> int:
        """Rows of all tables."""
        return sum(file.rows for file in self.files)

    def iter_batches(
        self, columns: Sequence[str] | None = None, *, batch_rows: int = 1024
    ) -> Iterator[pa.RecordBatch]:
        """Batches of at most `batch_rows` rows, never across tables; one row group is in memory at a time.

        Raises UserError for a column that the tables do not have, or for a table damaged within.
        """
        wanted = self._columns(columns)
        for file in self.files:
            yield from table_batches(file.url, wanted, batch_rows=batch_rows)

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows of the given columns, all columns by default; errors as in `iter_batches`."""
        wanted = self._columns(columns)
        schema = pa.schema([self.schema.field(name) for name in wanted])
        return pa.Table.from_batches(self.iter_batches(wanted), schema).unify_dictionaries()

    def _columns(self, columns: Sequence[str] | None) -> list[str]:
        wanted = list(self.schema.names if columns is None else columns)
        for file in self.files:
            for name in wanted:
                if name not in file.columns:
                    raise UserError(f"{file.url} has no column {name!r}; it has {', '.join(file.columns)}")
        return wanted


def read_scores(source: str | Sequence[str], columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of a score table, of several, or of an output folder, as one table in memory.

    `ScoreTables(source).iter_batches()` reads the same rows in bounded memory. Raises UserError as it does.
    """
    return ScoreTables(source).read(columns)


def table_batches(url: str, columns: Sequence[str], *, batch_rows: int = 1024) -> Iterator[pa.RecordBatch]:
    """Batches of at most `batch_rows` rows of one table; one row group is in memory at a time.

    Raises FileNotFoundError where it is gone, UserError where it is damaged within.
    """
    with storage.parquet_source(url) as source:
        with storage.parsing(url):
            batches = pq.ParquetFile(source, page_checksum_verification=True).iter_batches(
                batch_rows, columns=list(columns)
            )
        while True:
            with storage.parsing(url):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch


def _tables_of(source: str) -> list[storage.ObjectInfo]:
    url = storage.absolute_url(source)
    if url.endswith(TABLE_SUFFIX):
        try:
            return [storage.stat(url)]
        except FileNotFoundError:
            raise UserError(f"no score table at {source}") from None
    for folder in (storage.join(url, SCORES.folder), url):
        found = storage.list_folder(folder, suffix=TABLE_SUFFIX)
        if found:
            return found
    raise UserError(f"no score table in {source}: expected {SCORES.folder}/*{TABLE_SUFFIX} below it")


def _table_footer(info: storage.ObjectInfo) -> RecordFooter:
    return read_footer(info.url, size=info.size, newest_schema=SCORES.schema_version)


def _table_file(info: storage.ObjectInfo) -> TableFile:
    footer = _table_footer(info)
    shard = footer.record()
    with storage.parsing(info.url):
        config = typed(RowConfig, footer.metadata["config"])
        teacher = typed(TeacherRecord, footer.metadata["teacher"])
        visible = footer.metadata["visible"]
        columns = table_schema(visible=visible, patch_bytes=teacher.patch_size**2 * 3, store=config.store)
        for name in footer.schema.names:
            if name in columns.names and footer.schema.field(name).type != columns.field(name).type:
                raise TypeError(f"its column {name} is {footer.schema.field(name).type}")
        file = {
            "url": footer.url,
            "rows": footer.rows,
            "row_groups": footer.row_groups,
            "shard": shard.name,
            "size": shard.size,
            "sha256": shard.sha256,
            "identity": sys.intern(shard.identity),
            "first_view": config.first_view,
            "last_view": config.first_view + config.views,
            "teacher": f"{teacher.name} {teacher.digest}",
            "grid": teacher.grid,
            "visible": visible,
            "columns": tuple(footer.schema.names),
            # One text for the files of a run, which may be many thousands.
            "settings": sys.intern(canonical_json(footer.metadata["config"])),
        }
        return typed(TableFile, file)


def _check_agreement(files: Sequence[TableFile]) -> None:
    for name, what in (("teacher", "teacher"), ("grid", "grid"), ("visible", "number of visible patches")):
        groups: dict[str, list[str]] = defaultdict(list)
        for file in files:
            groups[str(getattr(file, name))].append(file.url)
        if len(groups) > 1:
            parts = [f"{value} in {urls[0]}{_more(urls)}" for value, urls in groups.items()]
            raise UserError(f"score tables differ in their {what}: {'; '.join(parts)}")


def _more(urls: Sequence[str]) -> str:
    return f" and {len(urls) - 1} more" if len(urls) > 1 else ""


def _check_overlap(files: Sequence[TableFile]) -> None:
    by_content: dict[str, list[TableFile]] = defaultdict(list)
    for file in files:
        by_content[file.sha256].append(file)
    for same in by_content.values():
        same.sort(key=lambda file: file.first_view)
        for one, other in itertools.pairwise(same):
            if other.first_view < one.last_view:
                last = min(one.last_view, other.last_view) - 1
                raise UserError(
                    f"{one.url} and {other.url} hold the same views ({other.first_view} to {last}) of one "
                    f"shard content ({one.shard} and {other.shard}): leave one of them out"
                )
