"""Where the bytes of an object come from: a local file, ranges of a store, the answer of a web server."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from typing import Any

from patchsieve.pipeline.errors import InfrastructureError, PatchsieveError
from patchsieve.pipeline.storage.lookup import filesystem, is_http
from patchsieve.pipeline.storage.retry import (
    Pauses,
    ShortReadError,
    describe_error,
    is_transient,
    with_retry,
)
from patchsieve.pipeline.storage.urls import canonical_url, is_local, local_path

CHUNK = 2**20
# Of each stream the one in use is in memory, and those that are fetched meanwhile.
RANGE_BLOCK = 8 * 2**20
BLOCKS_AHEAD = 3
# A web server that breaks off again and again after a few bytes is given up in the end.
_MAX_RESUMPTIONS = 50


def chunks_of(url: str, start: int, stop: int, size: int) -> Generator[bytes, None, None]:
    """The bytes `start` to `stop` of an object of `size` bytes, in pieces of at most 8 MiB.

    It may end early: the reader counts. Raises InfrastructureError for every fault of the store.
    """
    if is_local(url):
        return _local_chunks(url, start, stop)
    return _http_chunks(url, start, stop, size) if is_http(url) else _range_chunks(url, start, stop)


def fetch_range(url: str, start: int, stop: int) -> bytes:
    """The bytes `start` to `stop` of an object, in one request; InfrastructureError if it has fewer."""
    what = f"reading {canonical_url(url)}"
    if is_local(url):
        return with_retry(lambda: _local_range(url, start, stop), what=what)
    if is_http(url):
        return with_retry(lambda: _http_range(url, start, stop), what=what)
    store, path = filesystem(url)

    def fetch() -> bytes:
        data: bytes = store.cat_file(path, start=start, end=stop)
        return _exactly(data, stop - start)

    return with_retry(fetch, what=what)


def fetch_small(url: str, size: int) -> bytes | None:
    """All of an object of a store that has `size` bytes, not 0, in one request; None where it has more by now.

    A store answers with bytes of one version, even while another is being written. Raises InfrastructureError for
    fewer.
    """
    store, path = filesystem(url)

    def fetch() -> bytes | None:
        # One more than there were tells of a version that is longer.
        data: bytes = store.cat_file(path, start=0, end=size + 1)
        return None if len(data) > size else _exactly(data, size)

    return with_retry(fetch, what=f"reading {canonical_url(url)}")


def _exactly(data: bytes, count: int) -> bytes:
    if len(data) != count:
        raise ShortReadError(f"the store gave {len(data)} of {count} bytes")
    return data


def _local_range(url: str, start: int, stop: int) -> bytes:
    with open(local_path(url), "rb", buffering=0) as file:
        file.seek(start)
        data = bytearray()
        while part := file.read(stop - start - len(data)):
            data += part
    return _exactly(bytes(data), stop - start)


def _local_chunks(url: str, start: int, stop: int) -> Generator[bytes, None, None]:
    try:
        with open(local_path(url), "rb", buffering=0) as file:
            file.seek(start)
            # Not beyond the length found before: a file that grows is noticed when it is looked up again.
            while start < stop and (chunk := file.read(min(CHUNK, stop - start))):
                start += len(chunk)
                yield chunk
    except OSError as error:
        raise InfrastructureError(f"reading {canonical_url(url)}: {describe_error(error)}") from None


def _range_chunks(url: str, start: int, stop: int) -> Generator[bytes, None, None]:
    pool = ThreadPoolExecutor(BLOCKS_AHEAD, thread_name_prefix="fetch")
    starts = range(start, stop, RANGE_BLOCK)
    requests = (pool.submit(fetch_range, url, at, min(at + RANGE_BLOCK, stop)) for at in starts)
    try:
        pending = deque(islice(requests, BLOCKS_AHEAD))
        while pending:
            block = pending.popleft().result()
            pending.extend(islice(requests, 1))
            yield block
    finally:
        # Without waiting: the store may have stalled.
        pool.shutdown(wait=False, cancel_futures=True)


def _http_chunks(url: str, start: int, stop: int, size: int) -> Generator[bytes, None, None]:
    """One answer, read as it comes; after a fault that may pass another one goes on where it broke off."""
    resumptions = 0
    pauses = Pauses()
    while start < stop:
        try:
            with closing(_http_answer(url, start, size, stop=stop if stop < size else None)) as answer:
                while start < stop:
                    chunk: bytes = answer.read(min(CHUNK, stop - start))
                    if not chunk:
                        raise ShortReadError("the server gave fewer bytes than it had reported")
                    start += len(chunk)
                    pauses = Pauses()
                    yield chunk
        except PatchsieveError:
            raise
        except Exception as error:
            resumptions += 1
            pause = pauses.next() if is_transient(error) and resumptions <= _MAX_RESUMPTIONS else None
            if pause is None:
                broken = f"{canonical_url(url)} broke off after {start} of {size} bytes"
                raise InfrastructureError(f"{broken}: {describe_error(error)}") from None
            time.sleep(pause)


def _http_range(url: str, start: int, stop: int) -> bytes:
    with closing(_http_answer(url, start, None, stop=stop)) as answer:
        data = bytearray()
        while len(data) < stop - start and (chunk := answer.read(stop - start - len(data))):
            data += chunk
    return _exactly(bytes(data), stop - start)


def _http_answer(url: str, start: int, size: int | None, *, stop: int | None = None) -> Any:
    """An open answer that stands at byte `start`; if the server knows no byte ranges, by reading up to it."""
    store, path = filesystem(url)
    # Compressed on the way, the answer would have another length than the object.
    headers = {**store.kwargs.get("headers", {}), "Accept-Encoding": "identity"}
    if start or stop is not None:
        headers["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
    # A known size and block size 0 make fsspec stream one answer, without looking the object up again.
    answer = store.open(path, "rb", block_size=0, size=size or stop, headers=headers)
    try:
        partial, given = answer.r.status == 206, answer.r.headers
        total = (
            given.get("Content-Range", "").rpartition("/")[2] if partial else given.get("Content-Length", "")
        )
        if size is not None and total.isdigit() and int(total) != size:
            raise InfrastructureError(f"{canonical_url(url)} changed while it was read")
        skip = 0 if partial else start
        while skip:
            chunk = answer.read(min(CHUNK, skip))
            if not chunk:
                raise ShortReadError(f"the server gave less than the {start} bytes before it")
            skip -= len(chunk)
    except BaseException:
        answer.close()
        raise
    return answer
