"""Exceptions of the project: each carries one string, so that it survives pickling between processes."""

from __future__ import annotations


class PatchsieveError(Exception):
    """Base class; `str(error)` is the one line a user reads."""

    def __init__(self, message: str) -> None:
        super().__init__(message)


class UserError(PatchsieveError):
    """What the user asked cannot be done; the message holds the value and the way out (exit code 2)."""


class ContentError(PatchsieveError):
    """A fault of the data itself, on bytes that storage delivered completely; recorded, never retried."""


class DamagedFileError(UserError):
    """A file of ours that does not hold what was written: cut, changed, of another program, or of wrong types."""


class InfrastructureError(PatchsieveError):
    """A fault of storage, network or machine: nothing commits and the attempt is made again."""


class AccessError(InfrastructureError):
    """A store that forbids, or that has no such bucket: waiting does not help, who runs this can (exit code 2)."""


class DeviceError(InfrastructureError):
    """A fault of a GPU or its driver: the process that met it cannot go on, and no data are to blame."""


class DamagedArchiveError(ContentError):
    """A tar archive that breaks off or cannot be parsed further."""


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, its type where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def last_line(error: BaseException) -> str:
    """The last line of what an exception says: Ray's begin with tracebacks of its processes."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
