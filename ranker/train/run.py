"""Ray Train around `Fit`: workers, checkpoints, restarts."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, prepare_model

from patchsieve.pipeline import storage
from patchsieve.pipeline.cluster.metrics import RunMetrics
from patchsieve.pipeline.cluster.nodes import autoscaler_resources, cluster_nodes, this_place
from patchsieve.pipeline.cluster.session import ray_session
from patchsieve.pipeline.cluster.slots import MOST_DECODE_CPUS, check_workers, worker_size
from patchsieve.pipeline.compute.device import keep_freed_memory
from patchsieve.pipeline.compute.gpu_faults import assigned_device
from patchsieve.pipeline.errors import PatchsieveError, last_line
from patchsieve.pipeline.images.pixel_gate import GATE
from patchsieve.pipeline.output.folder import new_run_id
from patchsieve.pipeline.output.owner import Owner
from patchsieve.pipeline.runs.log import log_event, run_events
from patchsieve.pipeline.runs.stop import StopRequest, stop_on_signals, stop_this_run
from patchsieve.pipeline.runs.watchdog import Watchdog
from patchsieve.pipeline.shown import say
from patchsieve.pipeline.storage import scratch_folder
from patchsieve.pipeline.units import counted
from patchsieve.ranker.model.initial_weights import TEACHER_WEIGHTS, initial_ranker, read_tables_teacher
from patchsieve.ranker.model.ranker import Ranker
from patchsieve.ranker.train.curves import plot_note
from patchsieve.ranker.train.loop import Fit, FitState, read_state
from patchsieve.ranker.train.plan import TrainPlan
from patchsieve.ranker.train.progress import finished, follow, numbers_of, outcome, print_point
from patchsieve.ranker.train.record import begin, begun, check_resume, write_settings
from patchsieve.ranker.train.steps import print_step
from patchsieve.ranker.train.workers import Worker

STATE_FILE = "state.pt"
RAY_FOLDER = "ray"
_GO_ON = "--resume goes on from the last checkpoint"
# Metrics, and the columns of the curve that they show.
_GAUGES = {"step": "step", "loss": "loss", "agreement": "agreement", "waited_share": "waited"}


def train(plan: TrainPlan) -> int:
    """Fit the ranker on Ray, save it in OUT and print how it went; returns the exit code.

    Raises UserError where OUT holds a training that may not go on, and for a recipe, tables or weights that cannot
    work; PatchsieveError where the workers failed too often.
    """
    config = plan.config
    out = storage.absolute_url(config.out)
    plan = dataclasses.replace(plan, config=dataclasses.replace(config, out=out))
    check_resume(plan, begun(out))
    weights = _initial_weights(plan)
    # Two that train in one folder would tidy each other's checkpoints away.
    owner = Owner(out, new_run_id(), on_lost=stop_this_run)
    people = config.log_format == "text"
    with (
        run_events(config.log_format, job="train", run_id=owner.run_id),
        stop_on_signals(lambda _signal: owner.release(), then=f": {_GO_ON}") as stop,
    ):
        try:
            owner.acquire()
            storage.remove_temporaries(out, keep_run_id=owner.run_id)
            # Another run may have begun, and ended, before this one owned the folder.
            record = begun(out)
            check_resume(plan, record)
            if record is None:
                begin(plan, run_id=owner.run_id)
            write_settings(config, run_id=owner.run_id)
            if people and (note := plot_note()):
                say(note)
            log_event("run begun", {"out": config.out, "images": plan.images, "steps": plan.recipe.steps})
            # A rerun of what is over costs no Ray.
            if not finished(out, plan.recipe.steps):
                tell_step = print_step if people else partial(log_event, "step")
                with ray_session(stop), follow(out, _teller(owner.run_id, people=people), tell_step):
                    _fit(plan, weights, owner.run_id)
        except KeyboardInterrupt:
            return _stopped(stop, people=people)
        except PatchsieveError as error:
            log_event("run ended", {"state": f"ended: {error}"}, level=logging.ERROR)
            raise
        finally:
            owner.release()
        lines = outcome(out, shown=config.out)
        log_event("run ended", {"state": "complete", "exit_code": 0, "summary": lines})
    if people:
        say(*lines)
    return 0


def _stopped(stop: StopRequest, *, people: bool) -> int:
    number: signal.Signals = stop.accept()
    state = f"stopped by {number.name}: {_GO_ON}"
    log_event("run ended", {"state": state, "exit_code": 128 + number})
    if people:
        say(state)
    return 128 + number


def _teller(run_id: str, *, people: bool) -> Callable[[dict[str, str]], None]:
    """What to do with each measurement."""
    metrics = RunMetrics("train", run_id)

    def tell(point: dict[str, str]) -> None:
        if people:
            print_point(point)
        log_event("measured", numbers_of(point))
        for name, column in _GAUGES.items():
            if point[column]:
                metrics.set(f"patchsieve_train_{name}", float(point[column]))

    return tell


def _initial_weights(plan: TrainPlan) -> dict[str, torch.Tensor]:
    config = plan.config
    teacher = None
    if config.weights == TEACHER_WEIGHTS:
        name, digest = str(plan.teacher["name"]), str(plan.teacher["digest"])
        teacher = read_tables_teacher(config.teacher, name=name, digest=digest)
    return initial_ranker(plan.ranker, config.weights, teacher=teacher, seed=config.seed).state_dict()


def _fit(plan: TrainPlan, weights: dict[str, torch.Tensor], run_id: str) -> None:
    config = plan.config
    size, room = worker_size(
        cluster_nodes(), gpus_per_worker=config.gpus_per_worker, autoscaler=autoscaler_resources()
    )
    check_workers(config.workers, size, room)
    if config.workers == "auto":
        plan = plan.with_workers(room)
        told = {"workers": plan.workers, "room": room, "gpus_per_worker": size.gpus}
        log_event("workers chosen", told)
        if config.log_format == "text":
            say(f"{counted(plan.workers, 'worker')}, there is room for {room}")
    # Left to itself, Ray Train knows fewer stores than we do, and looks for their credentials elsewhere.
    store, path = storage.arrow_filesystem(config.out)
    failures: Any = FailureConfig  # of the release that is pinned; the types tell of an older one
    trainer = TorchTrainer(
        _work,
        # Workers may be on machines that see neither the file nor the hub.
        train_loop_config={"plan": plan, "weights": ray.put(weights), "run_id": run_id},
        # One processor's worth of matrix products per worker, whatever the node offers besides.
        scaling_config=ScalingConfig(
            num_workers=plan.workers,
            use_gpu=size.gpus > 0,
            resources_per_worker={"CPU": size.cpus, "GPU": size.gpus} if size.gpus else None,
        ),
        # NCCL wants a whole GPU for each, and nobody to talk to wants nothing.
        torch_config=TorchConfig(backend="nccl" if size.gpus == 1 and plan.workers > 1 else "gloo"),
        run_config=RunConfig(
            name=RAY_FOLDER,
            storage_path=path,
            storage_filesystem=store,
            # Machines that are taken back are nobody's failure.
            failure_config=failures(max_failures=config.max_restarts, max_preemption_failures=-1),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise _cause(error) from error


def _cause(error: ray.train.TrainingFailedError) -> PatchsieveError:
    """What to tell the user: a worker's own error where it is one of ours."""
    failures = getattr(error, "worker_failures", {})
    ours = [failure for failure in failures.values() if isinstance(failure, PatchsieveError)]
    if ours:
        return ours[0]
    return PatchsieveError(f"training failed: {last_line(error)}")


def _work(settings: dict[str, Any]) -> None:
    """One worker; every rank runs it."""
    keep_freed_memory()
    plan: TrainPlan = settings["plan"]
    GATE.limit = plan.config.decode_pixels
    context = ray.train.get_context()
    device = assigned_device(this_place().gpus)
    if device.type == "cuda":
        device = ray.train.torch.get_device()  # of those of its node, which all its workers see
    worker = Worker(
        rank=context.get_world_rank(),
        ranks=context.get_world_size(),
        device=device,
        decode_threads=_decode_threads(device, context.get_local_world_size()),
    )
    ranker = Ranker(plan.ranker).to(device)
    ranker.load_state_dict(ray.get(settings["weights"]))
    model = None
    if worker.ranks > 1:
        # Positions are the same everywhere; sharing them would make workers wait for each other while they measure.
        model = prepare_model(ranker, parallel_strategy_kwargs={"broadcast_buffers": False})
    fit = Fit(
        plan,
        ranker,
        worker=worker,
        model=model,
        state=_checkpoint(),
        run_id=settings["run_id"],
        over_step=Watchdog(plan.config.stall_timeout, _tell_stall).over,
        noticed=lambda: ray.train.get_preemption_info() is not None,
    )

    def report(newest: dict[str, Any], state: Any) -> None:
        values = {"step": fit.training.step, "measured": newest}
        if worker.rank:
            ray.train.report(values)
            return
        with scratch_folder() as scratch:
            local_folder = scratch / "checkpoint"
            local_folder.mkdir()
            torch.save(state(), local_folder / STATE_FILE)
            ray.train.report(values, checkpoint=Checkpoint.from_directory(local_folder))

    fit.run(report)


def _tell_stall(reason: str) -> None:
    """On standard error, which Ray shows beside the driver's lines."""
    told = f"a step of this worker ends nowhere: {reason}; the worker ends itself"
    say(f"patchsieve train: {told}", file=sys.stderr)
    log_event("worker stalled", {"reason": reason}, level=logging.ERROR)


def _decode_threads(device: torch.device, local_workers: int) -> int:
    """Beside a GPU, a worker's share of its node's processors, less one for its steps; on processors its only one."""
    if device.type == "cpu":
        return 1
    return max(1, min((os.cpu_count() or 1) // local_workers - 1, MOST_DECODE_CPUS))


def _checkpoint() -> FitState | None:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        return read_state(Path(folder) / STATE_FILE)
