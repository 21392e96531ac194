"""The commands from Python: what `pack`, `score`, `train` and `prune` do, with the same settings by name and a result.

    summary = patchsieve.score("photos/*.tar", out="tables", teacher="tiny", crop="center", views="22")
    ranker = patchsieve.train("tables", out="ranker")
    patchsieve.prune("photos/*.tar", ranker="ranker", out="pruned", keep=0.5).exit_code

Names of settings are those of the options (docs/commands.md) with underscores. They work on the Ray of this process, or
start one for as long as they take; run again, they resume. Stop signals are theirs meanwhile, as the commands'.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from patchsieve.pipeline.checks import configured, configured_run
from patchsieve.pipeline.errors import PatchsieveError
from patchsieve.pipeline.pack.config import PackConfig
from patchsieve.pipeline.runs.config_file import config_to_yaml
from patchsieve.pipeline.score.config import ScoreConfig
from patchsieve.ranker.prune.config import PruneConfig
from patchsieve.ranker.train.config import TrainConfig

if TYPE_CHECKING:
    from patchsieve.pipeline.pack.job import PackSummary
    from patchsieve.pipeline.score_on_ray.summary import ScoreSummary
    from patchsieve.ranker.model.checkpoint import LoadedRanker
    from patchsieve.ranker.prune_on_ray.summary import PruneSummary


def pack(folder: str, *, out: str, **settings: Any) -> PackSummary:
    """Pack a folder of photos, whose sub folders are classes, into shards; raises UserError where that cannot be."""
    from patchsieve.pipeline.output.folder import new_run_id
    from patchsieve.pipeline.pack.job import pack as run

    config = configured(PackConfig, settings, folder=folder, out=out)
    return run(config, lambda line: None, run_id=new_run_id())


def score(shards: str | Sequence[str], *, out: str, **settings: Any) -> ScoreSummary:
    """Score shards into the tables of an output folder; `read_scores(out)` reads them.

    The summary has counts, rates and `exit_code`: 0 complete, 1 where shards or too many samples are missing. Raises
    UserError for settings that cannot be, PatchsieveError where the run cannot go on.
    """
    from patchsieve.pipeline.runs.progress import make_display
    from patchsieve.pipeline.score.request import make_request
    from patchsieve.pipeline.score_on_ray.run import score as run

    config = configured_run(ScoreConfig, settings, shards=_several(shards), out=out)
    return run(make_request(config), make_display(config.log_format), settings=config_to_yaml(config))


def train(tables: str | Sequence[str], *, out: str, **settings: Any) -> LoadedRanker:
    """Fit a ranker to tables and load the one that agreed best, as `load_ranker(out)` does.

    Raises UserError for settings and tables that cannot be, PatchsieveError where the training ended early.
    """
    from patchsieve.ranker.model.checkpoint import load_ranker
    from patchsieve.ranker.train.plan import make_plan
    from patchsieve.ranker.train.run import train as run

    code = run(make_plan(configured_run(TrainConfig, settings, tables=_several(tables), out=out)))
    if code:
        raise PatchsieveError(f"the training in {out} was stopped; with resume=True it goes on")
    return load_ranker(out)


def prune(shards: str | Sequence[str], *, ranker: str, out: str, **settings: Any) -> PruneSummary:
    """Write smaller shards; `PrunedDataset(out + "/shards/*.tar")` reads them. Summary and errors as of `score`."""
    from patchsieve.pipeline.runs.progress import make_display
    from patchsieve.ranker.prune.request import make_prune_request
    from patchsieve.ranker.prune_on_ray.run import prune as run

    config = configured_run(PruneConfig, settings, shards=_several(shards), ranker=ranker, out=out)
    return run(make_prune_request(config), make_display(config.log_format), settings=config_to_yaml(config))


def _several(paths: str | Sequence[str]) -> tuple[str, ...]:
    return (paths,) if isinstance(paths, str) else tuple(paths)
