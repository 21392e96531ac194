"""A whole training on a pretended GPU: steps, measurements, checkpoints through files, what OUT holds."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from patchsieve.ranker.model.checkpoint import load_ranker
from patchsieve.ranker.model.initial_weights import initial_ranker
from patchsieve.ranker.train.loop import Fit, State
from patchsieve.ranker.train.plan import TrainPlan, make_plan
from patchsieve.ranker.train.progress import read_curve
from patchsieve.ranker.train.record import begin
from patchsieve.ranker.train.workers import Worker
from tests.helpers.pixel_tables import write_pixel_table
from tests.helpers.pretended_gpu.device import Device
from tests.ranker.learning.test_training import config_for

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_pixel_table(tmp_path_factory.mktemp("tables") / "a.parquet", images=range(40), views=1)


def a_plan(table: str, out: Path, **changes: object) -> TrainPlan:
    asked: dict[str, object] = {"head": "token", "depth": 1, "epochs": 2, "measure_every": 1, "flip": True}
    return make_plan(config_for(table, out, **{**asked, **changes}))


def fit(plan: TrainPlan, device: torch.device, state: State | None = None) -> list[io.BytesIO]:
    """Run to the end; returns the files of all checkpoints."""
    ranker = initial_ranker(plan.ranker, seed=plan.config.seed).to(device)
    worker = Worker(device=device)
    found: list[io.BytesIO] = []

    def report(_newest: dict[str, Any], content: Callable[[], State]) -> None:
        file = io.BytesIO()
        torch.save(content(), file)
        file.seek(0)
        found.append(file)

    Fit(plan, begin(plan, run_id="run-1"), ranker, worker=worker, state=state, run_id="run-1").run(report)
    return found


def agreements(out: Path) -> list[float]:
    return [float(point["agreement"]) for point in read_curve(str(out))]


def test_it_learns_what_a_processor_learns(gpu: Device, table: str, tmp_path: Path) -> None:
    for name, device in (("gpu", CUDA), ("cpu", CPU)):
        fit(a_plan(table, tmp_path / name, precision="fp32"), device)
    assert agreements(tmp_path / "gpu") == pytest.approx(agreements(tmp_path / "cpu"), abs=1e-3)
    assert load_ranker(str(tmp_path / "gpu")).device.type == "cuda"


def test_half_precision_is_what_auto_takes_and_goes_on_from_a_checkpoint(
    gpu: Device, table: str, tmp_path: Path
) -> None:
    first, *_, last = fit(a_plan(table, tmp_path / "whole"), CUDA)
    state = torch.load(first, map_location=CUDA, weights_only=True)
    assert state["training"]["scaler"]["scale"] > 0
    fit(a_plan(table, tmp_path / "resumed"), CUDA, state)
    assert agreements(tmp_path / "resumed") == agreements(tmp_path / "whole")
    assert torch.load(last, map_location="cpu", weights_only=True)["training"]["step"] == 4
