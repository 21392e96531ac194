"""What a training would cost: counted from its plan, and steps measured for a few seconds as a worker would."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from functools import partial

import torch

from patchsieve.pipeline.cluster.dry_run import DryRun
from patchsieve.pipeline.cluster.slots import check_workers, worker_size
from patchsieve.pipeline.compute.device import short_name
from patchsieve.pipeline.units import byte_size, duration
from patchsieve.ranker.batches.batch import Batch
from patchsieve.ranker.batches.index import TableIndex
from patchsieve.ranker.batches.stream import WINDOW_BYTES
from patchsieve.ranker.learning.training import Training
from patchsieve.ranker.model.ranker import Ranker
from patchsieve.ranker.train.plan import TrainPlan

_PROBE_S = 1.0
"""A probed step takes at least this long, or has all rows of a worker's part; shorter ones would time overheads."""

_FIRST_ROWS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainEstimate:
    """Predictions for a training. `pass_bytes`: read from the store in one pass, by all workers together.

    `window_bytes`: rows that a worker holds to draw batches from, the next ones included. `rows_per_s`: of one of the
    `workers`; `room`: for how many the cluster, or this machine, has some; `where`: what measured the rate.
    """

    passes: float
    pass_bytes: int
    window_bytes: int
    rows_per_s: float
    seconds: float
    workers: int
    room: int
    where: str

    def lines(self) -> list[str]:
        """What the dry run prints below the plan."""
        return [
            f"reading   about {byte_size(self.pass_bytes)} per pass, {byte_size(self.pass_bytes * self.passes)} in all",
            f"memory    about {byte_size(self.window_bytes)} of stored rows per worker, beside the model's own",
            f"workers   {self.workers}, there is room for {self.room}",
            f"speed     {self.rows_per_s:,.1f} rows/s per worker on {self.where}, steps alone",
            f"time      about {duration(self.seconds)}, where rows arrive as fast ({self.seconds / 3600:.2f} h)",
        ]


def estimate_training(plan: TrainPlan, run: DryRun) -> TrainEstimate:
    """Count, and time real steps of the ranker on made-up rows where `run` says; nothing is read or written.

    Takes some seconds. Raises UserError where the cluster has no room for the workers, PatchsieveError and
    torch.OutOfMemoryError where a worker's part of a batch does not fit the GPU.
    """
    config, recipe = plan.config, plan.recipe
    size, room = worker_size(run.nodes, gpus_per_worker=config.gpus_per_worker, autoscaler=run.autoscaler)
    if run.joined:
        check_workers(config.workers, size, room)
    plan = plan.with_workers(room)
    part = recipe.batch_size // (plan.workers * recipe.accumulate)
    (rows_per_s, device), place = run.measure(partial(step_rate, plan=plan, part=part), size)
    return TrainEstimate(
        passes=recipe.steps * recipe.batch_size / max(1, int(plan.index.train_rows.sum())),
        pass_bytes=int(plan.index.read_bytes[plan.index.train_rows > 0].sum()),
        window_bytes=window_memory(plan.index, ranks=plan.workers),
        rows_per_s=rows_per_s,
        seconds=recipe.steps * recipe.batch_size / plan.workers / rows_per_s,
        workers=plan.workers,
        room=room,
        where=f"{device} of {place}",
    )


def window_memory(index: TableIndex, *, ranks: int, window_bytes: int = WINDOW_BYTES) -> int:
    """Bytes of stored pixels that a worker holds at most: two windows, a window being at least one slice."""
    sizes = index.sizes[index.train_rows > 0]
    largest = int(sizes.max(initial=0))
    # A slice on the cut between two workers is read by both.
    share = int(sizes.sum()) // ranks + 2 * largest
    return min(2 * max(window_bytes, largest), share)


def step_rate(device: torch.device, *, plan: TrainPlan, part: int) -> tuple[float, str]:
    """Rows per second of a worker that takes `part` rows at once, data aside; and the name of its device."""
    precision = plan.config.precision
    half = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
    with torch.random.fork_rng():
        ranker = Ranker(plan.ranker).to(device)
    training = Training(
        ranker,
        dataclasses.replace(plan.recipe, accumulate=1),
        device=device,
        half=torch.float16 if precision == "auto" and device.type == "cuda" else half.get(precision),
        full=plan.config.context == "full",
    )
    rate = _rate(lambda rows: training.train_step([_made_up(plan.index, rows)]), part)
    return rate, short_name(device)


def _rate(step: Callable[[int], object], part: int) -> float:
    """Rows per second of steps of `part` rows; of fewer, where those already take long."""
    rows = min(part, _FIRST_ROWS)
    while True:
        step(rows)  # the first one of a size sets up what later ones use again
        started = time.perf_counter()
        step(rows)
        seconds = time.perf_counter() - started
        if rows == part or seconds >= _PROBE_S:
            return rows / seconds
        # Towards the time wanted in few tries, and never far beyond it.
        rows = min(part, rows * max(2, min(8, int(_PROBE_S / max(seconds, 1e-3)))))


def _made_up(index: TableIndex, rows: int) -> Batch:
    """A batch of noise in the shape of the tables' rows."""
    generator = torch.Generator().manual_seed(0)
    positions = torch.rand(rows, index.grid**2, generator=generator).argsort(1)[:, : index.visible]
    patches = index.grid**2 if index.context == "full" else index.visible
    shape = (rows, patches, index.patch_size**2 * 3)
    return Batch(
        epoch=0,
        step=0,
        patches=torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8),
        positions=positions.sort(1).values,
        scores=torch.rand(rows, index.visible, generator=generator),
        sample_keys=("",) * rows,
        views=(0,) * rows,
    )
