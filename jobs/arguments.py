"""From a command line to a configuration: flags over a YAML file over defaults, or the help that was asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import tyro

from patchsieve.jobs.examples import EXAMPLES
from patchsieve.jobs.recipes import config_file, recipes_of
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.options.given import check_given
from patchsieve.pipeline.options.page import help_page
from patchsieve.pipeline.options.reading import options_of
from patchsieve.pipeline.runs.config_file import settings_from_yaml
from patchsieve.pipeline.shown import say_page

_Config = TypeVar("_Config")


def read_config(name: str, config_type: type[_Config], arguments: Sequence[str]) -> _Config:
    """The job's configuration from a command line; UserError where a value cannot be."""
    rest = list(arguments)
    if any(text in ("-h", "--help") for text in rest):
        say_page(help_page(name, config_type, examples=EXAMPLES[name], recipes=recipes_of(name)))
        raise SystemExit(0)
    at = next((i for i, text in enumerate(rest) if text.partition("=")[0] == "--config"), None)
    default: Any = tyro.MISSING_NONPROP
    if at is not None:
        path = rest[at].partition("=")[2] if "=" in rest[at] else "".join(rest[at + 1 : at + 2])
        if not path:
            raise UserError("--config needs the name of a YAML file")
        default = _defaults(config_type, settings_from_yaml(config_file(name, path), config_type))
        del rest[at : at + 1 if "=" in rest[at] else at + 2]
    check_given(name, options_of(config_type), rest, complete=at is None)
    config: _Config = tyro.cli(config_type, prog=f"patchsieve {name}", args=rest, default=default)
    return config


def _defaults(config_type: type[_Config], settings: Mapping[str, Any]) -> _Config:
    """What flags are laid over. Not checked, and what neither file nor class tells is missing: flags may give it."""
    config = object.__new__(config_type)
    for field in dataclasses.fields(config_type):  # type: ignore[arg-type]
        default = tyro.MISSING_NONPROP if field.default is dataclasses.MISSING else field.default
        object.__setattr__(config, field.name, settings.get(field.name, default))
    return config
