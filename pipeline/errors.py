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


class InfrastructureError(PatchsieveError):
    """A fault of storage, network or machine: nothing commits and the attempt is made again."""


class DamagedArchiveError(ContentError):
    """A tar archive that breaks off or cannot be parsed further."""
