"""Ray Train around `Training`: workers, checkpoints, restarts, and the finished ranker."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import os
import tempfile
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, prepare_model

from patchrank.pipeline import storage
from patchrank.pipeline.errors import PatchrankError, UserError
from patchrank.pipeline.score_run import ray_session
from patchrank.pipeline.stop_signals import stop_on_signals
from patchrank.ranker.checkpoint import save_ranker
from patchrank.ranker.dataset import TableBatches
from patchrank.ranker.model import Ranker
from patchrank.ranker.train_plan import TrainPlan
from patchrank.ranker.training import Training, fit_temperature

_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
STATE_FILE = "state.pt"
CURVE_FILE = "curve.csv"
RAY_FOLDER = "ray"


def train(plan: TrainPlan) -> list[str]:
    """Fit the ranker on Ray and save it in OUT; returns the lines to print.

    Raises UserError where OUT holds a training that was not asked to go on, PatchrankError where it failed.
    """
    config = plan.config
    out = storage.absolute_url(config.out)
    begun = bool(storage.list_folder(storage.join(out, RAY_FOLDER), folders=True))
    if begun and not config.resume:
        raise UserError(
            f"{config.out} holds a training: add --resume to go on with it, or choose another folder"
        )
    with stop_on_signals(lambda _signal: None) as stop, ray_session(stop):
        gpus = ray.cluster_resources().get("GPU", 0) >= config.workers and torch.cuda.is_available()
        trainer = TorchTrainer(
            _work,
            train_loop_config={"plan": plan, "out": out},
            # One processor's worth of matrix products per worker, whatever the node offers besides.
            scaling_config=ScalingConfig(num_workers=config.workers, use_gpu=gpus),
            torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
            run_config=RunConfig(
                name=RAY_FOLDER,
                storage_path=out,
                failure_config=FailureConfig(max_failures=3),
                checkpoint_config=CheckpointConfig(num_to_keep=2),
            ),
        )
        try:
            result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise PatchrankError(f"training failed: {str(error).strip().splitlines()[-1]}") from error
    metrics = result.metrics or {}
    return [
        f"complete: {plan.recipe.steps} steps, held-out agreement {metrics.get('agreement', float('nan')):.3f} "
        "(Spearman on the visible patches of held-out images)",
        f"ranker in {config.out}",
    ]


def _work(settings: dict[str, Any]) -> None:
    """One worker; every rank runs it."""
    plan: TrainPlan = settings["plan"]
    context = ray.train.get_context()
    rank, ranks = context.get_world_rank(), context.get_world_size()
    config, recipe = plan.config, plan.recipe
    device = ray.train.torch.get_device()
    torch.manual_seed(config.seed)
    ranker = Ranker(plan.ranker).to(device)
    model = prepare_model(ranker) if ranks > 1 else ranker
    precision = (
        config.precision if config.precision != "auto" else "fp16" if device.type == "cuda" else "fp32"
    )
    training = Training(model, recipe, device=device, half=_DTYPES[precision], full=config.context == "full")
    checkpoint = ray.train.get_checkpoint()
    curve: list[list[float]] = []
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            state = torch.load(Path(folder) / STATE_FILE, map_location=device, weights_only=True)
        ranker.load_state_dict(state["ranker"])
        training.load_state(state["training"])
        curve = state["curve"]
    batches = TableBatches(
        plan.index,
        batch_size=recipe.batch_size // (ranks * recipe.accumulate),
        seed=config.seed,
        rank=rank,
        ranks=ranks,
        flip=config.flip,
    )
    epoch, step = divmod(training.step * recipe.accumulate, batches.batches_per_epoch)
    with batches.stream(epoch=epoch, step=step) as stream:
        total, counted = 0.0, 0
        while training.step < recipe.steps:
            total += training.train_step(itertools.islice(stream, recipe.accumulate))
            counted += 1
            if training.step % plan.measure_steps and training.step < recipe.steps:
                continue
            agreement = _agreement(training, batches, device)
            curve.append([training.step, total / counted, agreement])
            total, counted = 0.0, 0
            if training.step == recipe.steps and rank == 0:
                _save(plan, ranker, training, batches, settings["out"], curve)
            _report(rank, training, ranker, curve)


def _agreement(training: Training, batches: TableBatches, device: torch.device) -> float:
    with batches.held_out() as held_out:
        sums = torch.tensor(training.agreement(iter(held_out)), dtype=torch.float64, device=device)
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(sums)
    return float(sums[0] / sums[1].clamp(min=1))


def _report(rank: int, training: Training, ranker: Ranker, curve: list[list[float]]) -> None:
    step, loss, agreement = curve[-1]
    metrics = {"step": step, "loss": loss, "agreement": agreement}
    if rank:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as scratch:
        state = {"ranker": ranker.state_dict(), "training": training.state(), "curve": curve}
        torch.save(state, Path(scratch) / STATE_FILE)
        ray.train.report(metrics, checkpoint=Checkpoint.from_directory(scratch))


def _save(
    plan: TrainPlan,
    ranker: Ranker,
    training: Training,
    batches: TableBatches,
    out: str,
    curve: list[list[float]],
) -> None:
    """Write the finished ranker and its curve; the temperature is fitted on this worker's held-out rows."""
    with torch.inference_mode(), batches.held_out() as held_out:
        temperature = fit_temperature((training.scores(batch).cpu(), batch.scores) for batch in held_out)
    ranker.eval()
    settings = {key: value for key, value in dataclasses.asdict(plan.config).items() if key != "tables"}
    save_ranker(
        out,
        ranker,
        teacher=plan.teacher,
        tables=plan.identities,
        temperature=temperature,
        extra={"training": settings, "agreement": curve[-1][2]},
        run_id=f"train-{os.getpid()}",
    )
    ranker.train()
    text = io.StringIO()
    csv.writer(text).writerows([["step", "loss", "agreement"], *curve])
    storage.commit_bytes(
        text.getvalue().encode(), storage.join(out, CURVE_FILE), run_id=f"train-{os.getpid()}"
    )
