"""`patchsieve evaluate`: a ranker against its teacher's own scores."""

from __future__ import annotations

import sys
from functools import partial

from patchsieve.jobs.command_line import run_job
from patchsieve.pipeline.runs.config_file import config_to_yaml
from patchsieve.pipeline.runs.waiting import doing
from patchsieve.pipeline.shown import say
from patchsieve.ranker.evaluate.config import EvaluateConfig


def run(config: EvaluateConfig) -> int:
    """Measure, print, and write what OUT asks for; returns the exit code."""
    from patchsieve.ranker.evaluate.plot import draw_evaluation, require_plots

    plotted = config.out is not None and config.plot
    if plotted:
        require_plots("the plot of --out (--no-plot leaves it out)")
    from patchsieve.pipeline.compute.device import keep_freed_memory
    from patchsieve.pipeline.output.folder import new_run_id
    from patchsieve.ranker.evaluate.report import report_lines, to_json, write_report
    from patchsieve.ranker.evaluate.run import evaluate

    keep_freed_memory()
    # With --json, standard output is the JSON alone.
    talk = sys.stderr if config.json else sys.stdout
    with doing("reading the images, the ranker and the teacher"):
        evaluation = evaluate(config, lambda line: say(line, file=talk))
    run_id = new_run_id()
    say(
        *(to_json(evaluation, run_id=run_id).splitlines() if config.json else ["", *report_lines(evaluation)])
    )
    if config.out is not None:
        with doing("drawing and writing"):
            plot = draw_evaluation(evaluation) if plotted else None
            write_report(evaluation, config.out, settings=config_to_yaml(config), plot=plot, run_id=run_id)
        say(f"written    {config.out}", file=talk)
    return 0


main = partial(run_job, "evaluate", EvaluateConfig, run)


if __name__ == "__main__":
    main()
