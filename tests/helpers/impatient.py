"""S3 clients for tests of troubles: no pauses to speak of, and trying again is left to our own code."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import fsspec
import pytest

from patchsieve.pipeline.storage import retry as storage_retry
from tests.helpers.servers import S3Store, s3_for_this_process

READ_TIMEOUT_S = 0.5


@contextlib.contextmanager
def impatient_s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Store]:
    """`s3_for_this_process`, asked by clients that give up at once and wait `READ_TIMEOUT_S` for a byte."""
    monkeypatch.setattr(storage_retry, "FIRST_DELAY_S", 0.001)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    client = fsspec.get_filesystem_class("s3")
    monkeypatch.setattr(client, "retries", 1)
    monkeypatch.setattr(client, "read_timeout", READ_TIMEOUT_S)
    with s3_for_this_process(monkeypatch) as store:
        yield store
