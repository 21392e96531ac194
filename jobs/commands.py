"""Every command with its configuration, and completion for shells."""

from __future__ import annotations

from patchsieve.pipeline.options.reading import options_of
from patchsieve.pipeline.pack.config import PackConfig
from patchsieve.pipeline.pictures.config import DemoConfig
from patchsieve.pipeline.pretrain.config import PretrainConfig
from patchsieve.pipeline.runs.status import StatusConfig
from patchsieve.pipeline.schedule.config import ListConfig, OnceConfig, RunConfig
from patchsieve.pipeline.score.config import ScoreConfig
from patchsieve.ranker.evaluate.config import EvaluateConfig
from patchsieve.ranker.gallery.config import SheetConfig
from patchsieve.ranker.prove.config import ProveConfig
from patchsieve.ranker.prune.config import PruneConfig
from patchsieve.ranker.report.config import ReportConfig
from patchsieve.ranker.train.config import TrainConfig
from patchsieve.ranker.verify.config import VerifyConfig

CONFIGS: dict[str, type] = {
    "pack": PackConfig,
    "score": ScoreConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "prove": ProveConfig,
    "prune": PruneConfig,
    "report": ReportConfig,
    "sheet": SheetConfig,
    "schedule once": OnceConfig,
    "schedule run": RunConfig,
    "schedule list": ListConfig,
    "status": StatusConfig,
    "verify": VerifyConfig,
    "pretrain": PretrainConfig,
    "demo": DemoConfig,
}
"""In the order of the help."""


def completion() -> list[str]:
    """A script for bash (and for zsh, after `bashcompinit`) that completes commands and options."""
    flags: dict[str, list[str]] = {}
    for command, config in CONFIGS.items():
        flags.setdefault(command.split()[0], []).extend(
            option.flag for option in options_of(config) if option.flag
        )
    cases = [f'    {name}) words="{" ".join(dict.fromkeys(words))}" ;;' for name, words in flags.items()]
    return [
        "_patchsieve() {",
        '  local words="" word="${COMP_WORDS[COMP_CWORD]}"',
        '  case "${COMP_WORDS[1]}" in',
        *cases,
        "  esac",
        f'  [ "$COMP_CWORD" = 1 ] && words="{" ".join(flags)}"',
        '  COMPREPLY=($(compgen -W "$words" -- "$word"))',
        "}",
        "complete -o default -F _patchsieve patchsieve",
    ]
