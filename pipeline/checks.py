"""Checks of settings that many configurations make, and what a setting is called on the command line."""

from __future__ import annotations

from patchsieve.pipeline.errors import UserError


def flag(setting: str) -> str:
    """The option of a setting: `--max-actors` for `max_actors`."""
    return f"--{setting.replace('_', '-')}"


def at_least_one(what: str, count: object) -> None:
    """Raise UserError for a count below 1; None, `auto` and the like are no counts."""
    if isinstance(count, int) and count < 1:
        raise UserError(f"{what} is {count}, must be at least 1")
