"""`patchsieve prove`: what kept patches are worth, beside every plainer way to the same cost."""

from __future__ import annotations

import sys
from functools import partial

from patchsieve.jobs.command_line import run_job
from patchsieve.pipeline.runs.config_file import config_to_yaml
from patchsieve.pipeline.runs.waiting import doing
from patchsieve.pipeline.shown import say
from patchsieve.ranker.prove.config import ProveConfig


def run(config: ProveConfig) -> int:
    """Measure, print, and write what was found; returns the exit code."""
    from patchsieve.ranker.evaluate.plot import require_plots

    if config.plot:
        require_plots("the plot of --out (--no-plot leaves it out)")
    from patchsieve.pipeline.compute.device import keep_freed_memory
    from patchsieve.pipeline.output.folder import new_run_id
    from patchsieve.ranker.prove.plot import draw_proof
    from patchsieve.ranker.prove.report import report_lines, to_json, write_report
    from patchsieve.ranker.prove.run import alone, prove

    keep_freed_memory()
    run_id = new_run_id()
    # With --json, standard output is the JSON alone.
    talk = sys.stderr if config.json else sys.stdout
    hire = alone
    if config.workers is not None:
        from patchsieve.ranker.prove_on_ray.crew import on_ray

        gpus = 1.0 if config.gpus_per_worker is None else config.gpus_per_worker
        hire = partial(on_ray, workers=config.workers, gpus_per_worker=gpus)
    with doing("reading the photos; then fitting and testing an arm"):
        proof = prove(config, lambda line: say(line, file=talk), run_id=run_id, hire=hire)
    say(*(to_json(proof, run_id=run_id).splitlines() if config.json else ["", *report_lines(proof)]))
    with doing("drawing and writing"):
        plot = draw_proof(proof) if config.plot else None
        write_report(proof, config.out, settings=config_to_yaml(config), plot=plot, run_id=run_id)
    say(f"written    {config.out}", file=talk)
    return 0


main = partial(run_job, "prove", ProveConfig, run)


if __name__ == "__main__":
    main()
