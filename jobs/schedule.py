"""`patchsieve schedule once|run|list`: has new corpora scored."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import TypeVar

from patchsieve.jobs.arguments import read_config
from patchsieve.jobs.command_line import run_job
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.runs.waiting import doing
from patchsieve.pipeline.schedule.config import ListConfig, OnceConfig, RunConfig, SubmitConfig
from patchsieve.pipeline.score.config import ScoreConfig
from patchsieve.pipeline.shown import say

_Submit = TypeVar("_Submit", bound=SubmitConfig)
_ACTIONS = (
    "once: one tick, for cron, Airflow or a CronJob; run: ticks by --cron; list: corpora and their state"
)
_STAND_IN = "shards"


def _with_score_options(config: _Submit, options: Sequence[str]) -> _Submit:
    """The configuration with the options for score, checked as score would."""
    chosen = tuple(options) or config.score_options
    score = read_config("score", ScoreConfig, ["--out", _STAND_IN, *chosen, _STAND_IN])
    given = (score.shards, score.out, score.root, score.part, score.dry_run)
    fixed = given == ((_STAND_IN,), _STAND_IN, None, None, False)
    if not fixed or any(text.partition("=")[0] == "--config" for text in chosen):
        raise UserError(
            "after -- come options of score, but for shards, --out, --root, --part, --dry-run and --config"
        )
    return dataclasses.replace(config, score_options=chosen, teacher=score.teacher)


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what the first word of the command line says; `arguments` None: those of the process."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    action, rest = (given[0], given[1:]) if given else ("--help", [])
    cut = rest.index("--") if "--" in rest else len(rest)
    own, options = rest[:cut], rest[cut + 1 :]

    def once(config: OnceConfig) -> int:
        from patchsieve.pipeline.schedule.run import run_once

        lines = (lambda line: None) if config.json else say
        code, told = run_once(_with_score_options(config, options), lines)
        say(*([json.dumps(told)] if config.json else ()))
        return code

    def run(config: RunConfig) -> int:
        from patchsieve.pipeline.schedule.run import run_schedule

        with doing(""):  # it waits for hours, and says so itself
            run_schedule(_with_score_options(config, options), say)
        return 0

    def show(config: ListConfig) -> int:
        from patchsieve.pipeline.schedule.listing import list_corpora, list_lines

        shown = list_corpora(config)
        say(*([json.dumps(shown)] if config.json else list_lines(shown)))
        return int(any(corpus["attention"] for corpus in shown))

    if action == "once":
        run_job("schedule once", OnceConfig, once, own)
    elif action == "run":
        run_job("schedule run", RunConfig, run, own)
    elif action == "list":
        run_job("schedule list", ListConfig, show, rest)  # scores nothing, refuses options of score
    known = action in ("-h", "--help")
    say("usage: patchsieve schedule once|run|list [OPTIONS] [-- SCORE OPTIONS]", _ACTIONS)
    raise SystemExit(0 if known else 2)


if __name__ == "__main__":
    main()
