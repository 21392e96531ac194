"""Stores that cannot be reached, whatever their client raises: one line, and no traceback."""

from __future__ import annotations

from typing import Any

import fsspec
import pytest

from patchsieve.jobs.command_line import run_job
from patchsieve.pipeline import storage
from patchsieve.pipeline.errors import AccessError, InfrastructureError, PatchsieveError
from patchsieve.pipeline.runs.status import StatusConfig
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


@pytest.mark.parametrize(
    ("error", "forbidden"),
    [
        (PermissionError(13, "Forbidden"), True),
        (type("NoCredentialsError", (Exception,), {})("Unable to locate credentials"), True),
        (type("HttpError", (Exception,), {"status": 401})("who?"), True),
        (type("HttpError", (Exception,), {"status": 503})("busy"), False),
        (ConnectionRefusedError(111, "refused"), False),
    ],
)
def test_what_is_forbidden_is_told_from_what_passes(
    error: Exception, forbidden: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "FIRST_DELAY_S", 0.0)

    def call() -> None:
        raise error

    with pytest.raises(InfrastructureError) as told:
        retry.with_retry(call, what="reading a")
    assert isinstance(told.value, AccessError) == forbidden


@pytest.mark.parametrize(("error", "code"), [(AccessError, 2), (InfrastructureError, 1)])
def test_the_exit_code_tells_who_can_help(error: type[PatchsieveError], code: int) -> None:
    def run(config: StatusConfig) -> int:
        raise error("no")

    with pytest.raises(SystemExit) as ended:
        run_job("status", StatusConfig, run, ["out"])
    assert ended.value.code == code
