"""Inputs on this machine that are not there, told before libraries are loaded: that takes seconds."""

from __future__ import annotations

import os
from collections.abc import Iterator

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.shards.specs import expand_shards
from patchsieve.ranker.model.names import needs_no_file

_SHARDS = ("shards", "test")
_OUTPUTS = ("path", "paths", "tables")
_PATTERN = frozenset("*?[{@")


def look_first(config: object) -> None:
    """Raise UserError for a path in the configuration, of shards or of what a run left, that does not exist.

    Stores and patterns are left to the job, which looks at all of them.
    """
    for path in _given(config, _SHARDS):
        if _is_missing(path):
            expand_shards([path])
    for path in _given(config, _OUTPUTS):
        if not needs_no_file(path):
            look_for(path)


def look_for(path: str) -> None:
    """Raise UserError for a path on this machine that does not exist."""
    if _is_missing(path):
        raise UserError(f"no such file or folder: {path}")


def _is_missing(path: str) -> bool:
    return "://" not in path and not _PATTERN & set(path) and not os.path.exists(os.path.expanduser(path))


def _given(config: object, names: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        given = getattr(config, name, None) or ()
        yield from [given] if isinstance(given, str) else given
