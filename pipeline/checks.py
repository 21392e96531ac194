"""Checks that many configurations and records make, and what a setting is called on the command line."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import types
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from patchsieve.pipeline.errors import UserError

T = TypeVar("T")


def flag(setting: str) -> str:
    """The option of a setting: `--max-actors` for `max_actors`."""
    return f"--{setting.replace('_', '-')}"


def at_least_one(what: str, count: object) -> None:
    """Raise UserError for a count below 1; None, `auto` and the like are no counts."""
    if isinstance(count, int) and count < 1:
        raise UserError(f"{what} is {count}, must be at least 1")


def typed(kind: type[T], values: Mapping[str, Any]) -> T:
    """A dataclass of these values, which come from a file: TypeError for one of another type than its field's."""
    made = kind(**values)
    for name, hint in _fields(kind):  # type: ignore[arg-type]
        value = getattr(made, name)
        if not _is_a(value, hint):
            raise TypeError(f"{name} is a {type(value).__name__}")
    return made


@functools.cache
def _fields(kind: type) -> list[tuple[str, Any]]:
    # Once for all: an output has thousands of records.
    hints = get_type_hints(kind)
    return [(field.name, hints[field.name]) for field in dataclasses.fields(kind)]


def _is_a(value: object, hint: Any) -> bool:
    origin, options = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in options
    if origin in (Union, types.UnionType):
        return any(_is_a(value, option) for option in options)
    # What is in a list or a mapping is for its reader to say.
    kind = origin or hint
    return kind is Any or (isinstance(value, kind) and (kind is bool or not isinstance(value, bool)))


def configured(kind: type[T], settings: Mapping[str, Any], **given: Any) -> T:
    """A configuration of settings by name and those that a call gives itself; UserError for a name that is none."""
    names = {field.name for field in dataclasses.fields(kind)} - given.keys()  # type: ignore[arg-type]
    for name in sorted(settings.keys() - names):
        raise UserError(f"there is no setting {name!r}{meant(name, names)}")
    return kind(**settings, **given)


def configured_run(kind: type[T], settings: Mapping[str, Any], **given: Any) -> T:
    """`configured`, for a call that does the work; UserError for settings that have commands look at it, or draw it."""
    for name in ("dry_run", "sheet"):
        if settings.get(name):
            raise UserError(f"{name} is for the command alone: a call from Python does the work")
    return configured(kind, settings, **given)


def meant(given: str, known: Iterable[str]) -> str:
    """`, did you mean X?` where something known is close to it."""
    close = difflib.get_close_matches(given, list(known), n=1, cutoff=0.6)
    return f". Did you mean {close[0]}?" if close else ""
