"""What all jobs share: configuration from flags and YAML, and errors as one line with an exit code."""

from __future__ import annotations

import dataclasses
import importlib.resources
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import tyro

from patchsieve.pipeline.errors import PatchsieveError, UserError
from patchsieve.pipeline.runs.config_file import settings_from_yaml
from patchsieve.pipeline.shown import say, show_warnings
from patchsieve.pipeline.storage import redact

_Config = TypeVar("_Config")

RECIPES = {"train": "patchsieve.ranker"}
"""Packages that ship configurations for a job, as `recipes/NAME.yaml`; `--config NAME` takes them."""


def run_job(
    name: str, config_type: type[_Config], run: Callable[[_Config], int], given: Sequence[str] | None = None
) -> None:
    """Read the configuration of one job, run it and exit with its code.

    `given`: arguments, None for those of the process. `--config FILE` gives defaults from YAML, which flags override;
    a bare name is that of a recipe that comes with patchsieve.
    """
    show_warnings()
    try:
        code = run(read_config(name, config_type, sys.argv[1:] if given is None else given))
    except PatchsieveError as error:
        say(f"patchsieve {name}: {redact(str(error))}", file=sys.stderr)
        code = 2 if isinstance(error, UserError) else 1
    except KeyboardInterrupt:
        code = 130
    sys.stdout.flush()
    if code >= 128:
        os._exit(code)  # stopped by a signal: Ray and threads that read would keep the process for seconds
    raise SystemExit(code)


def read_config(name: str, config_type: type[_Config], arguments: Sequence[str]) -> _Config:
    """The job's configuration from a command line; UserError where a value cannot be."""
    rest = list(arguments)
    at = next((i for i, text in enumerate(rest) if text.partition("=")[0] == "--config"), None)
    default: Any = tyro.MISSING_NONPROP
    if at is not None:
        path = rest[at].partition("=")[2] or "".join(rest[at + 1 : at + 2])
        if not path:
            raise UserError("--config needs the name of a YAML file")
        default = _defaults(config_type, settings_from_yaml(_config_file(name, path), config_type))
        del rest[at : at + 1 if "=" in rest[at] else at + 2]
    options = (tyro.conf.FlagCreatePairsOff,)
    config: _Config = tyro.cli(
        config_type, prog=f"patchsieve {name}", args=rest, default=default, config=options
    )
    return config


def _config_file(job: str, given: str) -> str:
    """The file that `--config` means: a shipped recipe by its name, else what is given, a path or URL."""
    if job in RECIPES and given.replace("-", "_").isidentifier():
        shipped = importlib.resources.files(RECIPES[job]) / "recipes" / f"{given}.yaml"
        if shipped.is_file():
            return str(shipped)
    return given


def _defaults(config_type: type[_Config], settings: Mapping[str, Any]) -> _Config:
    """What flags are laid over. Not checked, and what neither file nor class tells is missing: flags may give it."""
    config = object.__new__(config_type)
    for field in dataclasses.fields(config_type):  # type: ignore[arg-type]
        default = tyro.MISSING_NONPROP if field.default is dataclasses.MISSING else field.default
        object.__setattr__(config, field.name, settings.get(field.name, default))
    return config
