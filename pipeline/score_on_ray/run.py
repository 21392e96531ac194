"""A whole score run: take the output folder, see what is left, start Ray, work through the queue, sum up."""

from __future__ import annotations

import time

import ray

from patchsieve.pipeline import storage
from patchsieve.pipeline.cluster.capacity import capacity_for
from patchsieve.pipeline.cluster.nodes import autoscaler_gpus, cluster_nodes
from patchsieve.pipeline.cluster.session import ray_session
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.identity import digest_of
from patchsieve.pipeline.output.folder import OutputFolder, Plan, new_run_id
from patchsieve.pipeline.part import parse_part
from patchsieve.pipeline.row_config import Precision, RowConfig
from patchsieve.pipeline.runs.config_file import with_run_id
from patchsieve.pipeline.runs.log import run_events
from patchsieve.pipeline.runs.owned import RunRecord, run_to_end
from patchsieve.pipeline.runs.progress import Display, Totals
from patchsieve.pipeline.runs.stop import StopRequest, stop_this_run
from patchsieve.pipeline.score.config import parse_views
from patchsieve.pipeline.score.request import ScoreRequest
from patchsieve.pipeline.score_on_ray.queue import ShardQueue
from patchsieve.pipeline.score_on_ray.start import QueueOptions
from patchsieve.pipeline.score_on_ray.summary import ScoreSummary, score_summary
from patchsieve.pipeline.tables.schema import SCORES


def score(request: ScoreRequest, display: Display, *, settings: bytes) -> ScoreSummary:
    """Score what is left of the request; rerun to resume.

    `settings`: the resolved configuration, kept as `score.yaml` beside the tables. Raises UserError where the
    output belongs to a live run or holds other rows.
    """
    output = OutputFolder(
        request.config.out,
        SCORES,
        run_id=new_run_id(parse_part(request.config.part)),
        on_lost=stop_this_run,
    )
    run = _ScoreRun(request, output, settings)
    with run_events(request.config.log_format, job="score", run_id=output.run_id):
        run.check_stored_settings()
        return run_to_end(run, output, display)


class _ScoreRun:
    def __init__(self, request: ScoreRequest, output: OutputFolder, settings: bytes) -> None:
        self._request, self._output, self._settings = request, output, settings
        self._plan = Plan(todo=list(request.shards), done={}, changed=[])
        self._queue: ShardQueue | None = None
        self._started = time.monotonic()
        self._rows: RowConfig | None = None
        self._record = RunRecord(output, request.config, request.shards)

    def check_stored_settings(self) -> None:
        stored = self._output.stored_config()
        self._rows = self._request.known_rows(stored["rows"] if stored else None)
        if stored is not None and self._rows is not None:
            self._adopt(self._rows)

    def _adopt(self, rows: RowConfig) -> RowConfig:
        self._output.adopt_config(
            self._request.fields(rows), other=storage.kept_settings(self._request.config)
        )
        return rows

    def execute(self, display: Display, stop: StopRequest) -> ScoreSummary:
        self._record.acquire()
        config = self._request.config
        if self._rows is not None:
            self._adopt(self._rows)
            identity = digest_of(self._request.fields(self._rows))
            self._plan = self._output.plan(
                self._request.shards,
                identity,
                redo_errors=config.redo_errors,
                verify_content=config.verify_content,
            )
        settings, run_id = storage.join(config.out, "score.yaml"), self._output.run_id
        storage.commit_bytes(with_run_id(self._settings, run_id), settings, run_id=run_id)
        self._record.begin(self._plan.changed)
        if self._plan.todo:
            self._work(display, stop)
        return self.finish("complete", None)

    def _work(self, display: Display, stop: StopRequest) -> None:
        config = self._request.config

        def show(totals: Totals) -> None:
            stop.check()
            display.update(totals)

        with ray_session(stop):
            options = self._options()
            with display:
                self._queue = ShardQueue(
                    self._plan.todo,
                    ray.put(self._request.teacher),
                    self._output,
                    options,
                    out=config.out,
                    run_id=self._output.run_id,
                    rows=self._rows,
                    resolve=self._resolve,
                    show=show,
                )
                self._queue.run()

    def _options(self) -> QueueOptions:
        """How this cluster is used, as it is now."""
        config = self._request.config
        capacity = capacity_for(config, cluster_nodes(), autoscaler_gpus=autoscaler_gpus())
        size = capacity.size
        own_share = size.gpus > 0 and config.cpus_per_actor is None
        return QueueOptions(
            size=size,
            max_actors=config.max_actors,
            unsorted=config.unsorted,
            batch_size=config.known_batch_size,
            compile=config.compile,
            decode_threads=None if own_share else size.cpus,
            decode_pixels=config.decode_pixels,
            stall_timeout_s=config.stall_timeout,
            start_timeout_s=config.start_timeout,
            not_on=capacity.not_on,
            log_format=config.log_format,
        )

    def _resolve(self, precision: Precision) -> RowConfig:
        try:
            self._rows = self._adopt(self._request.rows(precision))
        except UserError:
            # The run of another part may have been first: what it measured is that of all.
            stored = self._output.stored_config()
            rows = self._request.known_rows(stored["rows"]) if stored is not None else None
            if rows is None:
                raise
            self._rows = self._adopt(rows)
        return self._rows

    def finish(self, state: str, stopped_code: int | None) -> ScoreSummary:
        config, queue = self._request.config, self._queue
        summary = score_summary(
            run_id=self._output.run_id,
            state=state,
            names={shard.id: shard.name for shard in self._request.shards},
            before=self._plan.done,
            results=queue.results if queue else {},
            failures=queue.failures if queue else {},
            seconds=time.monotonic() - self._started,
            waited_share=queue.totals().waited_share if queue else 0.0,
            devices=queue.devices if queue else (),
            taken_out=queue.taken_out if queue else {},
            views=parse_views(config.views)[1],
            max_bad=config.max_bad,
            salvage=config.salvage,
            stopped_code=stopped_code,
        )
        return self._record.end(summary, self._plan.changed)
