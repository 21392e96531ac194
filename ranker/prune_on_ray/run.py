"""A whole prune run: take the output folder, freeze the plan of a budget, prune what is left, sum up."""

from __future__ import annotations

import contextlib
import logging
import time

from patchsieve.pipeline import storage
from patchsieve.pipeline.cluster.places import Place
from patchsieve.pipeline.cluster.session import ray_session
from patchsieve.pipeline.errors import PatchsieveError
from patchsieve.pipeline.identity import digest_of
from patchsieve.pipeline.output.beside import lost_outputs
from patchsieve.pipeline.output.folder import OutputFolder, Plan, new_run_id
from patchsieve.pipeline.part import parse_part
from patchsieve.pipeline.pruned.index import INDEX
from patchsieve.pipeline.runs.config_file import with_run_id
from patchsieve.pipeline.runs.log import log_event, run_events
from patchsieve.pipeline.runs.owned import RunRecord, run_to_end
from patchsieve.pipeline.runs.progress import Display, Totals
from patchsieve.pipeline.runs.stop import StopRequest, stop_this_run
from patchsieve.pipeline.shards.specs import Shard
from patchsieve.ranker.prune.config import PruneConfig
from patchsieve.ranker.prune.plan import freeze_plan, read_plan, stored_precision
from patchsieve.ranker.prune.ranking import PruneResult
from patchsieve.ranker.prune.request import PruneRequest
from patchsieve.ranker.prune.survey import SURVEY, budget_of, remove_survey
from patchsieve.ranker.prune_on_ray.capacity import capacity_of, wait_for_capacity
from patchsieve.ranker.prune_on_ray.events import PruneEvents
from patchsieve.ranker.prune_on_ray.probe import precision_on_cluster
from patchsieve.ranker.prune_on_ray.summary import PruneSummary, summarise_prune
from patchsieve.ranker.prune_on_ray.waves import PruneWaves
from patchsieve.ranker.prune_on_ray.worker import Task
from patchsieve.ranker.select.image_choice import plan_images


def prune(request: PruneRequest, display: Display, *, settings: bytes) -> PruneSummary:
    """Prune what is left of the request; rerun to resume.

    `settings`: the resolved configuration, kept as `prune.yaml` beside the shards. Raises UserError where the
    output belongs to a live run or holds other shards.
    """
    output = OutputFolder(
        request.config.out,
        INDEX,
        run_id=new_run_id(parse_part(request.config.part)),
        beside=(*request.tar_folders, SURVEY.folder),
        on_lost=stop_this_run,
    )
    run = _PruneRun(request, output, settings)
    with run_events(request.config.log_format, job="prune", run_id=output.run_id):
        run.check_stored_settings()
        return run_to_end(run, output, display)


class _Session:
    """Ray, from when it is first needed to the end of the run."""

    def __init__(self, stack: contextlib.ExitStack, stop: StopRequest, config: PruneConfig) -> None:
        self.stop = stop
        self._stack, self._config = stack, config
        self._started = False

    def start(self) -> None:
        """Start or join it, once, and wait until it has a place for an actor."""
        if not self._started:
            self._started = True
            self._stack.enter_context(ray_session(self.stop, quiet=True))
            wait_for_capacity(self._config, self.stop.check)


class _PruneRun:
    def __init__(self, request: PruneRequest, output: OutputFolder, settings: bytes) -> None:
        self._request, self._output, self._settings = request, output, settings
        self._plan = Plan(todo=list(request.shards), done={}, changed=[])
        self._waves: PruneWaves | None = None
        self._taken_out: dict[Place, str] = {}
        self._started = time.monotonic()
        self._record = RunRecord(output, request.config, request.shards)
        self._planned = not request.needs_plan

    def check_stored_settings(self) -> None:
        stored = self._output.stored_config()
        self._request = stored_precision(self._request, stored)
        if not self._request.source.needs_precision:
            self._read_plan()
            if stored is not None:
                self._adopt()

    def _read_plan(self) -> None:
        frozen = None if self._planned else read_plan(self._request)
        if frozen is not None:
            self._request, self._planned = frozen, True

    def _adopt(self) -> None:
        self._output.adopt_config(self._request.fields, other=storage.kept_settings(self._request.config))

    def execute(self, display: Display, stop: StopRequest) -> PruneSummary:
        with contextlib.ExitStack() as session:
            return self._execute(_Session(session, stop, self._request.config), display)

    def _execute(self, session: _Session, display: Display) -> PruneSummary:
        self._record.acquire()
        settings, run_id = storage.join(self._request.config.out, "prune.yaml"), self._output.run_id
        storage.commit_bytes(with_run_id(self._settings, run_id), settings, run_id=run_id)
        self._record.begin()
        if self._request.source.needs_precision:
            session.start()
            room = capacity_of(self._request.config)
            chosen = precision_on_cluster(
                self._request.source, room.size, max(1, room.slots), session.stop.check, not_on=room.not_on
            )
            # The run of another part may have been first: what it measured is that of all.
            asked = stored_precision(self._request, self._output.stored_config())
            self._request = asked.with_precision(chosen) if asked.source.needs_precision else asked
        self._read_plan()
        if not self._planned:
            self._make_plan(display, session)
        self._adopt()
        identity, verify_content = digest_of(self._request.fields), self._request.config.verify_content
        found = self._output.plan(self._request.shards, identity, verify_content=verify_content)
        self._plan = self._without_lost(found)
        if self._plan.todo:
            self._waves = self._work("prune", self._plan.todo, display, session)
        return self.finish("complete", None)

    def _make_plan(self, display: Display, session: _Session) -> None:
        """The first pass: which images stay, and what the patches of those must reach in a budget."""
        images = budget = None
        left_out: list[str] = []
        asked = self._request
        if asked.choice is not None:
            images = plan_images(asked.choice, asked.shards)
            self._request = asked.with_thresholds(images=images.threshold)
        survey = OutputFolder(asked.config.out, SURVEY, run_id=self._output.run_id)
        ranked: list[Shard] = []
        if asked.selector.target is not None:
            failed = self._survey(survey, display, session)
            ranked = [shard for shard in asked.shards if shard.id not in failed]
            left_out = [shard.name for shard in asked.shards if shard.id in failed]
            budget = budget_of(survey, ranked, asked.selector)
        self._request = freeze_plan(
            asked, budget=budget, images=images, left_out=left_out, run_id=self._output.run_id
        )
        self._planned = True
        remove_survey(survey, ranked)

    def _survey(self, survey: OutputFolder, display: Display, session: _Session) -> dict[str, str]:
        """Rank every image that stays; returns why shards gave no scores, by shard id."""
        plan = survey.plan(self._request.shards, digest_of(self._request.survey_fields))
        if not plan.todo:
            return {}
        waves = self._work("survey", plan.todo, display, session)
        # A shard with a result was read to its end, and would fail again; the others may hold anything.
        unread = [key for key in waves.failures if key not in waves.results]
        if unread:
            raise PatchsieveError(
                f"no plan for --target-ratio: {len(unread)} shards could not be ranked, {unread[0]}: "
                f"{waves.failures[unread[0]]}; run again, or leave them out"
            )
        return waves.failures

    def _without_lost(self, plan: Plan) -> Plan:
        """The plan with shards to do again whose tar is not there, or of another size than its index says."""
        if self._request.spec.codec is None:
            return plan
        lost = lost_outputs(self._request.config.out, plan.done)
        done = {
            key: record
            for key, record in plan.done.items()
            if key not in lost and record.output == self._request.paths[key]
        }
        todo = [shard for shard in self._request.shards if shard.id not in done]
        return Plan(todo=todo, done=done, changed=plan.changed)

    def _work(self, task: Task, todo: list[Shard], display: Display, session: _Session) -> PruneWaves:
        done = len(self._request.shards) - len(todo)
        events = PruneEvents(self._output.run_id) if task == "prune" else None

        def ended(shard: Shard, result: PruneResult, host: str) -> None:
            if events is not None:
                events.shard_ended(shard, result, host)

        def give_up(shard: Shard, attempts: int, reason: str) -> None:
            self._output.record_failed(shard, attempts, reason)
            if events is not None:
                events.shard_failed(shard, attempts, reason)

        def show(waves: PruneWaves) -> None:
            session.stop.check()
            self._note_taken_out(waves)
            totals = _totals(waves, todo, done)
            if events is not None:
                events.totals(totals)
            display.update(totals)

        session.start()
        with display:
            waves = PruneWaves(
                self._request,
                task,
                run_id=self._output.run_id,
                ended=ended,
                give_up=give_up,
                show=show,
            )
            if task == "prune":
                self._waves = waves
            try:
                waves.run(todo)
            finally:
                self._note_taken_out(waves)
        return waves

    def _note_taken_out(self, waves: PruneWaves) -> None:
        for place, reason in waves.taken_out.items():
            if place not in self._taken_out:
                self._taken_out[place] = reason
                log_event("device taken out", {**place.fields, "reason": reason}, level=logging.ERROR)

    def finish(self, state: str, stopped_code: int | None) -> PruneSummary:
        config, waves = self._request.config, self._waves
        summary = summarise_prune(
            run_id=self._output.run_id,
            state=state,
            names={shard.id: shard.name for shard in self._request.shards},
            before=self._plan.done,
            results=waves.results if waves else {},
            failures=waves.failures if waves else {},
            seconds=time.monotonic() - self._started,
            devices=waves.devices if waves else (),
            taken_out={str(place): fault for place, fault in self._taken_out.items()},
            max_bad=config.max_bad,
            salvage=config.salvage,
            stopped_code=stopped_code,
        )
        return self._record.end(summary, self._plan.changed)


def _totals(waves: PruneWaves, todo: list[Shard], done: int) -> Totals:
    ended = [shard for shard in todo if shard.id in waves.results or shard.id in waves.failures]
    results = waves.results.values()
    busy = sum(result.seconds for result in results)
    return Totals(
        shards=done + len(todo),
        done=done + len(waves.results.keys() - waves.failures.keys()),
        failed=len(waves.failures),
        actors=waves.actors,
        starting=0,
        images=sum(result.images for result in results),
        views=sum(result.images for result in results),
        faults=sum(sum(result.faults.values()) for result in results),
        waited_share=sum(result.waited_s for result in results) / busy if busy else 0.0,
        bytes_total=sum(shard.size or 0 for shard in todo),
        bytes_done=sum(shard.size or 0 for shard in ended),
        worker="ranker",
        dropped=sum(result.dropped for result in results),
        taken_out=tuple(map(str, waves.taken_out)),
    )
