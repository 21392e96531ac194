"""Stores that cannot be reached, whatever their client raises: one line, and no traceback."""

from __future__ import annotations

from typing import Any

import fsspec
import pytest

from patchsieve.pipeline import storage
from patchsieve.pipeline.errors import InfrastructureError, PatchsieveError
from patchsieve.pipeline.storage import retry


class OddError(Exception):
    """Of a client that nobody has on a list."""


@pytest.mark.parametrize(
    "url", ["ftp://127.0.0.1:9/a.tar", "sftp://127.0.0.1:9/a.tar", "github://o:r@main/a.tar"]
)
def test_a_client_that_fails_as_it_is_made(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise OddError("no route to user:secret@host")

    monkeypatch.setattr(fsspec, "filesystem", fail)
    for call in (storage.stat, storage.read_bytes, storage.list_folder, storage.glob):
        with pytest.raises(PatchsieveError) as told:
            call(url)
        assert "secret" not in str(told.value)


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(InfrastructureError, match=r"ftp://127\.0\.0\.1:9"):
        storage.stat("ftp://127.0.0.1:9/a.tar")


def test_whatever_a_client_raises_is_a_fault_of_the_store() -> None:
    def call() -> None:
        raise OddError("Cannot send a request")

    with pytest.raises(InfrastructureError, match="reading a: OddError: Cannot send a request"):
        retry.with_retry(call, what="reading a")
