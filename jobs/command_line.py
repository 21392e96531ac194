"""What all jobs share: a configuration from a command line, and errors as one line with an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from patchsieve.jobs.arguments import read_config
from patchsieve.jobs.first_look import look_first
from patchsieve.pipeline.errors import AccessError, PatchsieveError, UserError
from patchsieve.pipeline.runs.waiting import never_silent
from patchsieve.pipeline.shown import say, show_warnings
from patchsieve.pipeline.storage import redact

_Config = TypeVar("_Config")


def run_job(
    name: str, config_type: type[_Config], run: Callable[[_Config], int], given: Sequence[str] | None = None
) -> None:
    """Read the configuration of one job, run it and exit with its code.

    `given`: arguments, None for those of the process. `--config FILE` gives defaults from YAML, which flags override;
    a bare name is that of a recipe that comes with patchsieve.
    """
    show_warnings()
    try:
        config = read_config(name, config_type, sys.argv[1:] if given is None else given)
        with never_silent():
            look_first(config)
            code = run(config)
    except PatchsieveError as error:
        say(f"patchsieve {name}: {redact(str(error))}", file=sys.stderr)
        code = 2 if isinstance(error, UserError | AccessError) else 1
    except KeyboardInterrupt:
        code = 130
    sys.stdout.flush()
    if code >= 128:
        os._exit(code)  # stopped by a signal: Ray and threads that read would keep the process for seconds
    raise SystemExit(code)
