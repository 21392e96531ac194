"""One file after the other against the sizes and digests that were recorded."""

from __future__ import annotations

import dataclasses

import pyarrow.parquet as pq

from patchsieve.pipeline import storage
from patchsieve.pipeline.errors import DamagedFileError
from patchsieve.pipeline.output.done import content_digest
from patchsieve.pipeline.output.folder import ERRORS_FOLDER
from patchsieve.pipeline.output.records import RecordFooter, read_footer
from patchsieve.pipeline.output.sealed import check_seal

_NO_DIGEST = "an earlier release wrote it without a digest; the checksums of its pages are right"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checked:
    """A file, its `path` below the output. `problem`: what is wrong with it; `untold`: what cannot be told."""

    path: str
    bytes: int
    problem: str = ""
    untold: str = ""


def check_parquet(out: str, path: str) -> Checked:
    """A record or errors file: its own digest, or where it has none, that its pages are whole.

    Raises FileNotFoundError where it is gone.
    """
    url = storage.join(out, *path.split("/"))
    size = storage.stat(url).size or 0
    try:
        sealed = check_seal(url, size=size)
        if not sealed:
            _read_pages(url)
    except DamagedFileError as error:
        return Checked(path=path, bytes=size, problem=str(error))
    return Checked(path=path, bytes=size, untold="" if sealed else _NO_DIGEST)


def _read_pages(url: str) -> None:
    with storage.parquet_source(url) as source, storage.parsing(url):
        for _ in pq.ParquetFile(source, page_checksum_verification=True).iter_batches(1024):
            pass


def check_record(out: str, path: str) -> list[Checked]:
    """A record, and with it the files that it tells of: its tar and its errors file.

    Whatever is wrong with one of them, the record is what has to go for the shard to be done again.
    """
    checked = check_parquet(out, path)
    if checked.problem:
        return [checked]
    try:
        footer = read_footer(storage.join(out, *path.split("/")))
        record = footer.record()
    except DamagedFileError as error:
        return [dataclasses.replace(checked, problem=str(error))]
    found = [checked]
    if record.output:
        found.append(_check_tar(out, footer))
    if record.errors:
        found.append(_check_errors(out, path, record.errors))
    return found


def _check_tar(out: str, footer: RecordFooter) -> Checked:
    told = footer.metadata["output"]
    path, size = told["path"], told["size"]
    url = storage.join(out, *path.split("/"))
    try:
        found = storage.stat(url).size or 0
    except FileNotFoundError:
        return Checked(path=path, bytes=0, problem=f"{path} is gone")
    if found != size:
        return Checked(path=path, bytes=found, problem=f"{path} has {found} bytes of {size}")
    if content_digest(url) != told.get("sha256"):
        return Checked(path=path, bytes=found, problem="its bytes are not those that were written")
    return Checked(path=path, bytes=found)


def _check_errors(out: str, record_path: str, digest: str) -> Checked:
    path = f"{ERRORS_FOLDER}/{record_path.rpartition('/')[2]}"
    try:
        checked = check_parquet(out, path)
        if not checked.problem:
            found = read_footer(storage.join(out, *path.split("/"))).metadata.get("digest")
            if found != digest:
                return dataclasses.replace(checked, problem="of another attempt than its record")
        return checked
    except FileNotFoundError:
        return Checked(path=path, bytes=0, problem="it is gone")
