"""Which faults of a store pass by themselves, how often a call is made again, and how a fault is told."""

from __future__ import annotations

import errno
import math
import os
import random
import time
from collections.abc import Callable
from typing import TypeVar

from patchsieve.pipeline.errors import AccessError, InfrastructureError, PatchsieveError, UserError
from patchsieve.pipeline.storage.urls import redact

T = TypeVar("T")

ATTEMPTS = 5
# Five attempts wait 0.2 + 0.4 + 0.8 + 1.6 s in between, give or take a half.
FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 10.0
_LONGEST_REASON = 300
STALL_VARIABLE = "PATCHSIEVE_STORE_TIMEOUT"
"""Environment variable: seconds after which a call that came no further is not made again."""
STALL_S = 180.0

# By name, since not every platform has all of them.
_TRANSIENT_ERRNO = {
    getattr(errno, name)
    for name in (
        "EAGAIN",
        "EBUSY",
        "ECONNABORTED",
        "ECONNREFUSED",
        "ECONNRESET",
        "EHOSTUNREACH",
        "EINTR",
        "EIO",
        "ENETDOWN",
        "ENETUNREACH",
        "EPIPE",
        "EREMOTEIO",
        "ESTALE",
        "ETIMEDOUT",
    )
    if hasattr(errno, name)
}
# 409: another write to the same name was under way.
_TRANSIENT_STATUS = {408, 409, 425, 429, 500, 502, 503, 504}
# By name, because the libraries they come from are extras: aiohttp, botocore, urllib3, azure, gcsfs.
_TRANSIENT_NAMES = {
    "ChecksumError",
    "ClientConnectionError",
    "ClientPayloadError",
    "HTTPClientError",
    "IncompleteRead",
    "IncompleteReadError",
    "ProtocolError",
    "ResponseParserError",
    "ServerDisconnectedError",
    "ServiceRequestError",
    "ServiceResponseError",
}
# Of botocore and google: no credentials, or only a part of them.
_DENIED_NAMES = {"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError"}
_STORE_LIBRARIES = {
    "aiobotocore",
    "aiohttp",
    "azure",
    "botocore",
    "fsspec",
    "gcsfs",
    "google",
    "http",
    "httpcore",
    "httpx",
    "huggingface_hub",
    "requests",
    "s3fs",
    "urllib3",
}


class ShortReadError(ConnectionError):
    """A store gave fewer bytes than it reported for the object."""


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an error of a client library carries, None where it carries none."""
    for candidate in (error, error.__cause__):
        for name in ("status", "status_code", "code"):
            value = getattr(candidate, name, None)
            if isinstance(value, int) and 100 <= value < 600:
                return value
        response = getattr(candidate, "response", None)
        value = (
            response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if isinstance(response, dict)
            else getattr(response, "status_code", None)
        )
        if isinstance(value, int):
            return value
    return None


def is_missing(error: BaseException) -> bool:
    """Whether the error says that there is no such object.

    The HTTP files of fsspec report every failed look-up as FileNotFoundError; what it was is the cause.
    """
    if isinstance(error, NotADirectoryError):
        return True  # below a file there is nothing
    if not isinstance(error, FileNotFoundError):
        return False
    cause = error.__cause__
    other_fault = cause is not None and not isinstance(cause, FileNotFoundError) and from_store(cause)
    return not other_fault or status_of(error) in {404, 410}


def is_denied(error: BaseException) -> bool:
    """Whether the store forbids it, or is given nothing that it knows its caller by."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, PermissionError) or bool(_DENIED_NAMES & names) or status_of(error) in (401, 403)


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed a moment later."""
    if isinstance(error, FileNotFoundError):
        return error.__cause__ is not None and is_transient(error.__cause__)
    # Before the status: aiohttp gives an answer that broke off a status of its own, 400.
    if _TRANSIENT_NAMES & {kind.__name__ for kind in type(error).__mro__}:
        return True
    status = status_of(error)
    if status is not None:
        return status in _TRANSIENT_STATUS
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    return isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNO


def from_store(error: BaseException) -> bool:
    """Whether the error is of a store, its library or the operating system, and no programming error."""
    return isinstance(error, OSError | EOFError) or type(error).__module__.split(".")[0] in _STORE_LIBRARIES


def describe_error(error: BaseException) -> str:
    """One line that names the fault, without credentials and of bounded length."""
    if isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    kind = "" if isinstance(error, PatchsieveError | ShortReadError) else type(error).__name__
    # Some servers answer with whole pages.
    text = " ".join(redact(str(error)[:4000]).split())[:_LONGEST_REASON]
    return f"{kind}: {text}" if kind and text else kind or text


def stall_seconds() -> float:
    """Seconds after which a call that came no further is not made again; UserError for what is no number of them."""
    told = os.environ.get(STALL_VARIABLE, "")
    try:
        seconds = float(told or STALL_S)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise UserError(f"{STALL_VARIABLE} is {told!r}, must be a number of seconds above 0")
    return seconds


class Pauses:
    """The pauses between attempts, in seconds: doubling, and random so that clients spread out.

    None follows once `stall_seconds` have passed since this was made.
    """

    def __init__(self, attempts: int = ATTEMPTS) -> None:
        self._left, self._number = attempts - 1, 0
        self._last = time.monotonic() + stall_seconds()

    def next(self) -> float | None:
        """The next one; None where no attempt is to follow."""
        if self._number >= self._left or time.monotonic() >= self._last:
            return None
        self._number += 1
        doubled: float = FIRST_DELAY_S * 2 ** (self._number - 1)
        return min(doubled, LONGEST_DELAY_S) * random.uniform(0.5, 1.5)


def with_retry(call: Callable[[], T], *, what: str, attempts: int = ATTEMPTS) -> T:
    """The result of the call, made again after faults that may pass.

    Raises FileNotFoundError for an object that is not there, FileExistsError and NotImplementedError as they come,
    InfrastructureError for anything else that a store's client raises, which is more than any list of names holds (the
    original is told, not chained: its text may hold credentials); of those AccessError for what is forbidden.
    """
    pauses = Pauses(attempts)
    while True:
        try:
            return call()
        except PatchsieveError:
            raise
        except Exception as error:
            if isinstance(error.__cause__, PatchsieveError):
                raise error.__cause__ from None  # of ours, inside of the client
            if is_missing(error):
                raise FileNotFoundError(f"{what}: not found") from None
            if isinstance(error, FileExistsError | NotImplementedError):
                raise
            pause = pauses.next() if is_transient(error) else None
            if pause is None:
                kind = AccessError if is_denied(error) else InfrastructureError
                raise kind(f"{what}: {describe_error(error)}") from None
            time.sleep(pause)
