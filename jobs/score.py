"""`patchsieve score`: from shards to a pseudo-score table."""

from __future__ import annotations

from functools import partial

from patchsieve.jobs.command_line import run_job
from patchsieve.pipeline.runs.config_file import config_to_yaml
from patchsieve.pipeline.runs.waiting import doing
from patchsieve.pipeline.score.config import ScoreConfig
from patchsieve.pipeline.shown import say


def run(config: ScoreConfig) -> int:
    """Score, or say what scoring would cost; returns the exit code."""
    from patchsieve.pipeline.score.request import make_request

    with doing("looking at the shards and the teacher"):
        request = make_request(config)
    if config.dry_run:
        from patchsieve.pipeline.cluster.dry_run import dry_run
        from patchsieve.pipeline.score.estimate import estimate

        with doing("measuring the teacher"), dry_run() as found:
            say(*estimate(request, found).lines(request))
        return 0
    from patchsieve.pipeline.runs.progress import make_display
    from patchsieve.pipeline.score_on_ray.run import score

    people = config.log_format == "text"
    if people and request.notes:
        say(*request.notes)
    with doing("looking at what is done; waiting for the first shard"):
        summary = score(request, make_display(config.log_format), settings=config_to_yaml(config))
    if people:
        say(*summary.lines(config.out))
    return summary.exit_code


main = partial(run_job, "score", ScoreConfig, run)


if __name__ == "__main__":
    main()
