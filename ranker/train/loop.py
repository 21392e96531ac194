"""One worker of a training from first step to last: steps, measurements, checkpoints, the best ranker so far.

Knows nothing of Ray: `report` takes a checkpoint wherever there is something to keep. From any checkpoint on, the steps
are those of an uninterrupted run: the order of rows, what a loss draws and all averages follow from the step.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from patchsieve.pipeline import storage
from patchsieve.ranker.baselines.fits import FITS, BaselineFits
from patchsieve.ranker.batches.batch import Batch
from patchsieve.ranker.batches.stream import TableBatches
from patchsieve.ranker.learning.training import Training
from patchsieve.ranker.learning.validation import Measured, Validation
from patchsieve.ranker.model.checkpoint import save_ranker
from patchsieve.ranker.model.ranker import Ranker
from patchsieve.ranker.train.curves import write_curves
from patchsieve.ranker.train.plan import TrainPlan
from patchsieve.ranker.train.steps import TOLD_EVERY_S, write_step
from patchsieve.ranker.train.workers import Worker

LAST_FOLDER = "last"
"""Below OUT: the ranker of the last step; OUT itself holds the one that agreed best with the teacher."""

NOTICE_S = 2.0
"""Seconds between two questions whether a worker's machine will be taken, at which workers wait for each other."""
PLOTTED_EVERY_S = 30.0
"""Seconds between two plots of the curve, which keep a small training waiting longer than its steps."""

_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}

FitState = dict[str, Any]
Report = Callable[[dict[str, Any], Callable[[], FitState]], None]
"""Takes the newest measurement and what makes the checkpoint's content; every worker calls it at the same steps."""


def read_state(local_path: Path) -> FitState:
    """A worker's state out of a file that `torch.save` wrote, in main memory whatever device it was on."""
    state: FitState = torch.load(local_path, map_location="cpu", weights_only=True)
    return state


@dataclasses.dataclass(kw_only=True)
class TrainProgress:
    """What a checkpoint holds beside weights and optimiser.

    `curve`: a record for each measurement. `best`: the one whose ranker is in OUT. `loss` and `steps`: sum and number
    since the last measurement; `seconds` and `waited`: of all steps so far, and of them those spent waiting for rows.
    """

    curve: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    best: dict[str, Any] = dataclasses.field(default_factory=dict)
    loss: float = 0.0
    steps: int = 0
    seconds: float = 0.0
    waited: float = 0.0


class Fit:
    """A ranker being fitted as one worker of several."""

    def __init__(
        self,
        plan: TrainPlan,
        ranker: Ranker,
        *,
        worker: Worker,
        model: nn.Module | None = None,
        state: FitState | None = None,
        run_id: str,
        over_step: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
        noticed: Callable[[], bool] = lambda: False,
    ) -> None:
        """`ranker`: the initial one, on the worker's device; `model`: its parallel wrapper where there are several.

        `state`: of the checkpoint to go on from. `over_step`: what each step happens in. `noticed`: whether a worker's
        machine will be taken, the same for all, which all ask at the same steps: each step is then kept at once. Reads
        the held-out rows.
        """
        config = plan.config
        precision = config.precision
        if precision == "auto":
            precision = "fp16" if worker.device.type == "cuda" else "fp32"
        self._plan, self._ranker, self._worker = plan, ranker, worker
        self._run_id, self._over_step, self._noticed = run_id, over_step, noticed
        self._plotted = time.monotonic()
        self.training = Training(
            model or ranker,
            plan.recipe,
            ranker=ranker,
            device=worker.device,
            half=_DTYPES[precision],
            full=config.context == "full",
            seed=config.seed,
            rank=worker.rank,
        )
        self._baselines = BaselineFits(grid=plan.index.grid, patch_size=plan.index.patch_size)
        self.progress = TrainProgress()
        if state is not None:
            ranker.load_state_dict(state["ranker"])
            self.training.load_state(state["training"])
            self._baselines.load_state(state["baselines"])
            self.progress = TrainProgress(**state["progress"])
        self._validation = Validation(
            plan.validation,
            plan.index,
            rank=worker.rank,
            ranks=worker.ranks,
            decode_threads=worker.decode_threads,
        )
        self._batches = TableBatches(
            plan.index,
            batch_size=plan.recipe.batch_size // (worker.ranks * plan.recipe.accumulate),
            seed=config.seed,
            rank=worker.rank,
            ranks=worker.ranks,
            flip=config.flip,
            decode_threads=worker.decode_threads,
            pinned=worker.device.type == "cuda",
        )

    def run(self, report: Report) -> TrainProgress:
        """All steps that are left. Raises DivergedError, and what reading tables and writing the ranker raise."""
        training, recipe = self.training, self._plan.recipe
        read = training.step * recipe.accumulate
        epoch, step = divmod(read, self._batches.batches_per_epoch)
        saved = asked = told = time.monotonic()
        began, first = saved, training.step
        leaving = False
        with self._batches.stream(epoch=epoch, step=step) as stream:
            while training.step < recipe.steps:
                with self._over_step():
                    self._step(stream)
                last = training.step == recipe.steps
                if self._worker.rank == 0 and time.monotonic() - told > TOLD_EVERY_S:
                    told = time.monotonic()
                    self._tell((told - began) / (training.step - first))
                measured = last or training.step % self._plan.measure_steps == 0
                if measured:
                    self._measure(last=last)
                now = time.monotonic()
                due = now - saved > 60 * self._plan.config.checkpoint_minutes
                # The clock of one worker decides for all.
                if self._worker.agreed(due or now - asked > NOTICE_S):
                    asked, leaving = now, self._noticed()
                    due = self._worker.agreed(due)
                else:
                    due = False
                if measured or due or leaving:
                    report(dict(self.progress.curve[-1]) if self.progress.curve else {}, self.state)
                    saved = time.monotonic()
        return self.progress

    def state(self) -> FitState:
        """What a later run goes on from, as `read_state` gives it back: tensors, numbers and texts."""
        return {
            "ranker": self._ranker.state_dict(),
            "training": self.training.state(),
            "baselines": self._baselines.state(),
            "progress": dataclasses.asdict(self.progress),
        }

    def _step(self, stream: Iterator[Batch]) -> None:
        progress, started = self.progress, time.monotonic()
        parts = self._timed(itertools.islice(stream, self._plan.recipe.accumulate))
        progress.loss += self.training.train_step(parts)
        progress.steps += 1
        progress.seconds += time.monotonic() - started

    def _tell(self, step_s: float) -> None:
        """Say how far it is, between measurements."""
        progress = self.progress
        write_step(
            self._plan.config.out,
            step=self.training.step,
            steps=self._plan.recipe.steps,
            loss=float(progress.loss) / max(1, progress.steps),
            step_s=step_s,
            run_id=self._run_id,
        )

    def _timed(self, stream: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            asked = time.monotonic()
            batch = next(stream, None)
            self.progress.waited += time.monotonic() - asked
            if batch is None:
                return
            yield batch
            # Of one worker: its share of a pass is a random one. A GPU computes on meanwhile.
            if batch.epoch == 0 and self._worker.rank == 0:
                self._baselines.add(batch)

    def _measure(self, *, last: bool) -> None:
        """Add to the curve; write the ranker where it is the best so far, or the last."""
        plan, progress, step = self._plan, self.progress, self.training.step
        measured = self._validation.measure(self.training, self._worker.gather)
        loss, waited = self._worker.mean([progress.loss / progress.steps, progress.waited])
        agreement = measured.agreement
        point = {
            "step": step,
            "views_per_image": step * plan.recipe.batch_size / plan.images,
            "loss": loss,
            "learning_rate": self.training.learning_rate,
            "agreement": agreement,
            "validation": measured.kind,
            "held_out": len(measured.scores),
            "waited": waited / max(progress.seconds, 1e-9),
            "seconds": progress.seconds,
        }
        progress.curve.append(point)
        progress.loss, progress.steps = 0.0, 0
        best = progress.best.get("agreement")
        better = not progress.best or (agreement is not None and (best is None or agreement > best))
        if better:
            progress.best = point
        if self._worker.rank == 0:
            # Before the checkpoint: a run that is killed in between measures and writes the same again.
            if better:
                self._save(plan.config.out, measured)
            if last:
                self._save(storage.join(plan.config.out, LAST_FOLDER), measured)
            # As it grows, so that a training can be followed while it runs.
            plotted = last or time.monotonic() - self._plotted > PLOTTED_EVERY_S
            write_curves(plan.config.out, progress.curve, run_id=self._run_id, plotted=plotted)
            if plotted:
                self._plotted = time.monotonic()

    def _save(self, folder: str, measured: Measured) -> None:
        point = self.progress.curve[-1]
        config = storage.kept_settings(self._plan.config)
        # Where things were, and how that was told, says nothing about the ranker.
        aside = ("tables", "out", "images", "log_format")
        settings = {key: value for key, value in config.items() if key not in aside}
        save_ranker(
            folder,
            self._ranker,
            teacher=self._plan.teacher,
            tables=self._plan.identities,
            temperature=measured.temperature(),
            extra={
                "run_id": self._run_id,
                "training": settings,
                "rows": self._plan.rows,
                "step": point["step"],
                "steps": self._plan.recipe.steps,
                "agreement": point["agreement"],
                "validation": measured.kind,
                "held_out": point["held_out"],
                FITS: self._baselines.result(),
            },
            run_id=self._run_id,
        )
