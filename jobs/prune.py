"""`patchrank prune`: from shards to smaller shards."""

from __future__ import annotations

from collections.abc import Sequence

from patchrank.jobs.command_line import run_job
from patchrank.pipeline.config_file import config_to_yaml
from patchrank.ranker.prune_config import PruneConfig


def run(config: PruneConfig) -> int:
    """Prune, or say what pruning would give; returns the exit code."""
    from patchrank.ranker.prune_plan import make_request

    request = make_request(config)
    if config.dry_run:
        from patchrank.ranker.prune_estimate import estimate

        print("\n".join(estimate(request).lines(request)))
        return 0
    from patchrank.pipeline.progress import make_display
    from patchrank.ranker.prune_run import prune

    summary = prune(request, make_display(config.log_format), settings=config_to_yaml(config))
    if config.log_format == "text":
        print("\n".join(summary.lines(config.out)))
    return summary.exit_code


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    run_job("prune", PruneConfig, run, arguments)


if __name__ == "__main__":
    main()
