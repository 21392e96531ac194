"""Configuration of `patchsieve schedule`: where corpora arrive, where their tables go, how jobs are submitted."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import tyro

from patchsieve.pipeline.checks import at_least_one, flag
from patchsieve.pipeline.errors import UserError

Hidden = Annotated[tuple[str, ...], tyro.conf.Suppress]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorporaConfig:
    """Where corpora arrive and where their tables go."""

    source: tuple[str, ...]
    """Folders of corpora, as patterns on any fsspec URL: 's3://bucket/corpora/*/' (quote them)."""
    out: str
    """Folder for the outputs, one below it for each corpus, named as the corpus is below the pattern's fixed part."""
    root: str | None = None
    """Name shards by their path below this URL, so that the corpora may move (score's --root)."""
    min_age: float | None = None
    """A corpus without a file _SUCCESS is complete once its newest shard is this many hours old."""
    max_age: float | None = None
    """A corpus that is not scored so many hours after its newest file came is overdue: exit 1."""
    max_failures: int = 3
    """A corpus whose last N jobs failed alike is left alone, until --retry-failed: exit 1."""

    def __post_init__(self) -> None:
        if not self.source:
            raise UserError("no --source given: name folders of corpora, such as 's3://bucket/corpora/*/'")
        if self.min_age is not None and self.min_age < 0:
            raise UserError(f"--min-age is {self.min_age}, must be 0 hours or more")
        if self.max_age is not None and not self.max_age > 0:
            raise UserError(f"--max-age is {self.max_age}, must be above 0 hours")
        at_least_one(flag("max_failures"), self.max_failures)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ListConfig(CorporaConfig):
    """Show corpora and what is scored of them; changes nothing and needs no cluster."""

    json: bool = False
    """Print JSON."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubmitConfig(CorporaConfig):
    """How a tick submits its jobs."""

    score_options: Hidden = ()
    teacher: Annotated[str, tyro.conf.Suppress] = ""
    address: str | None = None
    """The cluster's Jobs API, http://HOST:8265; by default what RAY_API_SERVER_ADDRESS or RAY_ADDRESS say."""
    working_dir: str | None = None
    """Checkout that is uploaded with each job; by default jobs run the patchsieve installed on the cluster."""
    retry_failed: bool = False
    """Submit again what is left alone: shards given up that did not change, corpora whose jobs failed alike."""
    max_jobs: int = 16
    """At most this many jobs of schedules at once; what is beyond them is left to a later tick."""
    drift: float | None = None
    """Watch for drift: on this share of a new corpus's shards, at least one, a ranker is evaluated: 0.01."""
    drift_ranker: str | None = None
    """The ranker of --drift (path or URL that the cluster reads)."""
    drift_reference: str | None = None
    """What it is held against: OUT of `patchsieve evaluate` of that ranker on held-out images it was trained beside."""
    drift_gpus: float = 0.0
    """GPUs that a job of --drift asks for."""
    dry_run: bool = False
    """Say what would be submitted; submits and writes nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(flag("max_jobs"), self.max_jobs)
        given = [self.drift is not None, self.drift_ranker is not None, self.drift_reference is not None]
        if any(given) and not all(given):
            raise UserError("--drift, --drift-ranker and --drift-reference go together: give all three")
        if self.drift is not None and not 0 < self.drift <= 1:
            raise UserError(f"--drift is {self.drift}, must be a share above 0, and at most 1")
        if self.drift_gpus < 0 or (self.drift_gpus and self.drift is None):
            raise UserError(f"--drift-gpus is {self.drift_gpus}: give a number above 0, with --drift")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnceConfig(SubmitConfig):
    """Submit one score job for each complete corpus with shards to score, then end.

    What follows a lone `--` are options of `patchsieve score` for every job: `-- --teacher mae-base`.
    """

    tick: str | None = None
    """Name of this tick, part of the submission ids; by default the time, to the minute."""
    wait: bool = False
    """Wait until the jobs of this tick have ended; the exit code is then the worst of theirs and the tick's."""
    json: bool = False
    """Print one JSON object at the end instead of lines."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tick is not None and not (self.tick.isascii() and self.tick.replace("-", "").isalnum()):
            raise UserError(f"--tick is {self.tick!r}, must be letters, digits and hyphens")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(SubmitConfig):
    """Tick again and again at the times of a cron expression, until stopped.

    Nothing is kept between ticks but the output folders: stop it and start it whenever you like.
    """

    cron: str
    """When to tick, as five fields of cron: "0 3 * * *" is every night at 3."""
    timezone: str = "UTC"
    """Time zone of --cron, such as Europe/Berlin."""
    tick_at_start: bool = False
    """Tick once at the start, too, which makes up for one that was missed."""
