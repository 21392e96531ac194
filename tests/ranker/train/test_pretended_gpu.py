"""A whole training on a pretended GPU: steps, measurements, checkpoints through files, what OUT holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from patchsieve.ranker.batches.batch import Batch
from patchsieve.ranker.learning.training import Training
from patchsieve.ranker.model.checkpoint import load_ranker
from patchsieve.ranker.model.initial_weights import initial_ranker
from patchsieve.ranker.train.loop import Fit, FitState, read_state
from patchsieve.ranker.train.plan import TrainPlan, make_plan
from patchsieve.ranker.train.progress import read_curve
from patchsieve.ranker.train.record import begin
from patchsieve.ranker.train.workers import Worker
from tests.helpers.pixel_tables import write_pixel_table
from tests.helpers.pretended_gpu.device import Device
from tests.ranker.learning.test_training import config_for

pytestmark = pytest.mark.usefixtures("plotted")

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_pixel_table(tmp_path_factory.mktemp("tables") / "a.parquet", images=range(24), views=1)


def a_plan(table: str, out: Path, **changes: object) -> TrainPlan:
    asked: dict[str, object] = {
        "head": "token",
        "depth": 1,
        "views_per_image": 2,
        "measure_every": 1,
        "flip": True,
    }
    return make_plan(config_for(table, out, **{**asked, **changes}))


def fit(
    plan: TrainPlan, device: torch.device, checkpoints: Path, state: FitState | None = None
) -> list[Path]:
    """Run to the end; returns the files of all checkpoints."""
    begin(plan, run_id="run-1")
    ranker = initial_ranker(plan.ranker, seed=plan.config.seed).to(device)
    found: list[Path] = []

    def report(_newest: dict[str, Any], content: Callable[[], FitState]) -> None:
        found.append(checkpoints / f"{len(found)}.pt")
        torch.save(content(), found[-1])

    Fit(plan, ranker, worker=Worker(device=device), state=state, run_id="run-1").run(report)
    return found


def agreements(out: Path) -> list[float]:
    return [float(point["agreement"]) for point in read_curve(str(out))]


def test_it_learns_what_a_processor_learns(gpu: Device, table: str, tmp_path: Path) -> None:
    for name, device in (("gpu", CUDA), ("cpu", CPU)):
        fit(a_plan(table, tmp_path / name, precision="fp32"), device, tmp_path)
    assert agreements(tmp_path / "gpu") == pytest.approx(agreements(tmp_path / "cpu"), abs=1e-3)
    assert load_ranker(str(tmp_path / "gpu")).device.type == "cuda"


def test_half_precision_is_what_auto_takes_and_goes_on_from_a_checkpoint(
    gpu: Device, table: str, tmp_path: Path
) -> None:
    first, *_ = fit(a_plan(table, tmp_path / "whole"), CUDA, tmp_path)
    state = read_state(first)
    assert state["training"]["scaler"]["scale"] > 0
    gpu.forget()
    fit(a_plan(table, tmp_path / "resumed"), CUDA, tmp_path, state)
    assert agreements(tmp_path / "resumed") == agreements(tmp_path / "whole")
    assert not gpu.ledger.of("implicit upload")


def test_batches_arrive_from_pinned_memory(
    gpu: Device, table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, sent = Training.train_step, []

    def watched(training: Training, batches: Iterable[Batch]) -> float:
        parts = list(batches)
        gpu.forget()
        loss = step(training, parts)
        sent.append(gpu.ledger.ways("upload"))
        return loss

    monkeypatch.setattr(Training, "train_step", watched)
    fit(a_plan(table, tmp_path / "out", views_per_image=2), CUDA, tmp_path)
    # Constants go up in the first step.
    assert sent[1:] == [{"async": 3}] * (len(sent) - 1)
    assert len(sent) > 1
