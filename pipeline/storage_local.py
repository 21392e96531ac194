"""Writing on a file system so that no reader and no killed writer ever shows half a file."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from typing import IO, BinaryIO

from patchsieve.pipeline.storage_urls import join, local_path, split_name

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
