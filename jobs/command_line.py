"""What all jobs share: configuration from flags and YAML, and errors as one line with an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import tyro

from patchrank.pipeline.config_file import config_from_yaml
from patchrank.pipeline.errors import PatchrankError, UserError

_Config = TypeVar("_Config")


def run_job(
    name: str, config_type: type[_Config], run: Callable[[_Config], int], arguments: Sequence[str] | None
) -> None:
    """Read the configuration of one job, run it and exit with its code.

    `arguments` None: those of the process. `--config FILE` gives defaults from YAML, which flags override.
    """
    try:
        code = run(read_config(name, config_type, sys.argv[1:] if arguments is None else arguments))
    except PatchrankError as error:
        print(f"patchrank {name}: {error}", file=sys.stderr)
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
    default: Any = tyro.MISSING_NONPROP
    if "--config" in rest:
        at = rest.index("--config")
        if at + 1 == len(rest):
            raise UserError("--config needs the name of a YAML file")
        default = config_from_yaml(rest[at + 1], config_type)
        del rest[at : at + 2]
    options = (tyro.conf.FlagCreatePairsOff,)
    config: _Config = tyro.cli(
        config_type, prog=f"patchrank {name}", args=rest, default=default, config=options
    )
    return config
