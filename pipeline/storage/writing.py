"""Writing: what is written becomes visible complete or not at all.

On a file system a commit copies beside the target, syncs, replaces and syncs the folder, so that no reader and no
killed writer ever shows half a file; on an object store it puts the whole object.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, TypeVar

from patchsieve.pipeline.errors import AccessError, InfrastructureError, UserError
from patchsieve.pipeline.storage.lookup import filesystem, list_folder, stat
from patchsieve.pipeline.storage.retry import describe_error, status_of, with_retry
from patchsieve.pipeline.storage.urls import canonical_url, is_local, join, local_path, split_name, split_url

T = TypeVar("T")

# Stores where an object appears whole when its upload ends. Others could show a torn file under its name.
_OBJECT_STORES = {"abfs", "abfss", "az", "gs", "hf", "memory", "oci", "oss", "s3", "tos"}
# Of those, the ones whose own request says "only if there is none" (If-None-Match or the like).
_CONDITIONAL_PUT = {"abfs", "abfss", "az", "gs", "oss", "s3", "tos"}
# No permission, a read-only mount, a file where a folder should be: waiting does not help, the user can.
_USERS_FAULT = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}


def _writing(call: Callable[[], T], url: str) -> T:
    """The result of a write; UserError where the user has to act, InfrastructureError for any other fault."""
    what = f"writing {canonical_url(url)}"

    def attempt() -> T:
        try:
            return call()
        except OSError as error:
            if error.errno in _USERS_FAULT or isinstance(error, PermissionError):
                raise UserError(f"cannot write {canonical_url(url)}: {describe_error(error)}") from None
            raise

    try:
        return with_retry(attempt, what=what)
    except FileNotFoundError:
        raise AccessError(f"{what}: its folder or bucket is not there, or was removed meanwhile") from None


def _store_for_writing(url: str) -> str:
    scheme = split_url(url)[0]
    if scheme not in _OBJECT_STORES:
        raise UserError(
            f"cannot write to {canonical_url(url)}: results go to a local or mounted folder, or to an "
            f"object store ({', '.join(sorted(_OBJECT_STORES))})"
        )
    return scheme


def make_folder(url: str) -> None:
    """Make a folder and its parents; nothing to do on an object store. Errors as `commit_file`."""
    if not is_local(url):
        _store_for_writing(url)
        return
    try:
        _writing(lambda: os.makedirs(local_path(url), exist_ok=True), url)
    except FileExistsError:
        raise UserError(f"cannot make the folder {canonical_url(url)}: a file has that name") from None


def arrow_filesystem(url: str) -> tuple[Any, str]:
    """A store as a `pyarrow.fs.FileSystem`, and the path in it, for libraries that write there by themselves.

    Reached as by everything here, with the same settings and credentials. Errors as `make_folder`.
    """
    import pyarrow.fs

    if is_local(url):
        return pyarrow.fs.LocalFileSystem(), local_path(url)
    _store_for_writing(url)
    store, path = filesystem(url)
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(store)), path


def commit_file(local: Path, url: str, *, run_id: str) -> None:
    """Put a finished local file under its final name, in place of what was there; its folder is made.

    Readers see the old content or the new one. Raises UserError where writing is not allowed or not possible,
    InfrastructureError for faults of the store; either way the name holds what it held.
    """
    if is_local(url):
        make_folder(split_name(local_path(url))[0])

        def copy_and_replace() -> None:
            with open(local, "rb") as source:
                replace_local(source, url, run_id)

        _writing(copy_and_replace, url)
        return
    _store_for_writing(url)
    store, path = filesystem(url)
    _writing(lambda: store.put_file(os.fspath(local), path), url)
    _verify_size(url, local.stat().st_size)


def commit_bytes(data: bytes, url: str, *, run_id: str) -> None:
    """`commit_file` of bytes in memory."""
    if is_local(url):
        make_folder(split_name(local_path(url))[0])
        _writing(lambda: replace_local(io.BytesIO(data), url, run_id), url)
        return
    _store_for_writing(url)
    store, path = filesystem(url)
    _writing(lambda: store.pipe_file(path, data), url)
    _verify_size(url, len(data))


def _verify_size(url: str, expected: int) -> None:
    try:
        committed = stat(url).size
    except FileNotFoundError:
        committed = None
    if committed != expected:
        raise InfrastructureError(f"{canonical_url(url)} has {committed} bytes after a commit of {expected}")


def create_exclusive(url: str, data: bytes) -> bool:
    """Create an object of these bytes only if there is none: True if this call did, False if it exists.

    Of any number of callers at most one gets True, and no reader ever sees a part of the data. Where the answer
    of an object store is lost and asked for again, the winner may get False: compare what the object holds.
    Raises NotImplementedError where the store cannot promise this (the object may have been written all the
    same), UserError and InfrastructureError as `commit_file`.
    """
    if is_local(url):
        make_folder(split_name(local_path(url))[0])
        return _writing(lambda: link_exclusive(url, data), url)
    scheme = _store_for_writing(url)
    if scheme not in _CONDITIONAL_PUT:
        raise NotImplementedError(f"{scheme}:// cannot create an object only if there is none")
    if not _put_exclusive(url, data):
        return False
    # Some stores speak S3 but ignore the condition: then a second creation succeeds as well.
    if _put_exclusive(url, data):
        raise NotImplementedError(
            f"this {scheme}:// store ignores the condition to create only if there is none"
        )
    return True


def _put_exclusive(url: str, data: bytes) -> bool:
    store, path = filesystem(url)

    def put() -> bool:
        try:
            store.pipe_file(path, data, mode="create")
        except FileExistsError:
            return False
        except Exception as error:
            if status_of(error) == 412:  # the condition does not hold
                return False
            raise
        return True

    return _writing(put, url)


def remove(url: str) -> None:
    """Remove an object; one that is not there is fine. Raises UserError, InfrastructureError."""
    if is_local(url):
        with contextlib.suppress(FileNotFoundError):
            _writing(lambda: Path(local_path(url)).unlink(missing_ok=True), url)
        return
    _store_for_writing(url)
    store, path = filesystem(url)

    def remove_object() -> None:
        with contextlib.suppress(FileNotFoundError):
            store.rm_file(path)

    _writing(remove_object, url)


def move(url: str, target: str) -> None:
    """Give an object another name in the same store, in place of what has it. Errors as `commit_file`.

    On an object store it is copied first: killed in between, both names have it.
    """
    if is_local(url):
        make_folder(split_name(local_path(target))[0])
        _writing(lambda: os.replace(local_path(url), local_path(target)), target)
        for changed in (target, url):
            _sync_folder(changed)
        return
    _store_for_writing(target)
    store, path = filesystem(url)
    _writing(lambda: store.cp_file(path, filesystem(target)[1]), target)
    remove(url)


def remove_temporaries(folder_url: str, *, keep_run_id: str | None = None, of_runs: str = "") -> int:
    """Remove what killed commits left directly in a folder, but for the run `keep_run_id`; returns how many.

    `of_runs`: only what runs left whose ids end so. Object stores have none: an upload that was broken off never shows.
    """
    if not is_local(folder_url):
        return 0
    kept = f".{keep_run_id}." if keep_run_id is not None else None
    wanted = f"{of_runs}." if of_runs else ""
    removed = 0
    for info in list_folder(folder_url, suffix=".tmp"):
        name = split_name(info.url)[1]
        if name.startswith(".") and (kept is None or kept not in name) and wanted in name:
            remove(info.url)
            removed += 1
    return removed


# Of a file's name, in bytes, in that of its temporary, which may have 255 as well.
_LONGEST_KEPT = 120
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}


def replace_local(source: IO[bytes], url: str, run_id: str) -> None:
    """Put all bytes of `source` under the name in one step, in place of what was there. Raises OSError."""
    with _temporary(url, run_id) as (temporary, target):
        shutil.copyfileobj(source, target, 2**20)
        _to_disk(target)
        os.replace(temporary, local_path(url))
    _sync_folder(url)


def link_exclusive(url: str, data: bytes) -> bool:
    """Give these bytes the name if nothing has it: True if this call did.

    Raises OSError, NotImplementedError where the file system has no hard links.
    """
    target = local_path(url)
    while True:
        with _temporary(url, "create") as (temporary, file):
            file.write(data)
            _to_disk(file)
            try:
                os.link(temporary, target)
            except FileExistsError:
                # NFS may repeat a request whose answer was lost, and then report our own link as another's.
                created = os.fstat(file.fileno()).st_nlink == 2
            except FileNotFoundError:
                continue  # a new owner of the folder tidied our temporary away
            except OSError as error:
                if error.errno in _NO_HARD_LINKS:
                    raise NotImplementedError(f"the file system of {target} has no hard links") from None
                raise
            else:
                created = True
        _sync_folder(url)
        return created


@contextlib.contextmanager
def _temporary(url: str, run_id: str) -> Iterator[tuple[str, BinaryIO]]:
    """A new file beside the target, open for writing, removed at the end unless it was renamed.

    Its name tells the run, and is another one at every attempt: an attempt given up may still be writing.
    """
    folder, name = split_name(local_path(url))
    name = os.fsdecode(os.fsencode(name)[:_LONGEST_KEPT])
    temporary = join(folder, f".{name}.{run_id}.{secrets.token_hex(4)}.tmp")
    with open(temporary, "xb") as file:
        try:
            yield temporary, file
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


def _to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(url: str) -> None:
    descriptor = os.open(split_name(local_path(url))[0], os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems sync no folders; what matters is in place.
        if error.errno not in {errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EOPNOTSUPP}:
            raise
    finally:
        os.close(descriptor)
