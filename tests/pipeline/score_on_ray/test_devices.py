"""Runs on GPUs that fail, are not there, or differ: real Ray and real scoring on GPUs that are only declared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from patchsieve.pipeline.cluster import places
from patchsieve.pipeline.compute.layers import has_half
from patchsieve.pipeline.runs.progress import Totals
from patchsieve.pipeline.score.config import ScoreConfig
from patchsieve.pipeline.score_on_ray.summary import ScoreSummary
from tests.helpers.faults import Faults
from tests.helpers.photos import photo_samples, write_shard
from tests.helpers.score_processes import leftovers, run_here
from tests.helpers.score_runs import (
    Watched,
    footers_of,
    rows_of,
    run_score,
    save_small_teacher,
    score_config,
    score_here,
)

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_small_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("shards")
    return [write_shard(folder / f"{number}.tar", photo_samples(4, number, 64, 64)) for number in range(6)]


def on_gpus(shards: list[Path], tmp_path: Path, teacher: str, **changes: Any) -> ScoreConfig:
    given: dict[str, Any] = {"gpus_per_actor": 1.0, "max_actors": None, **changes}
    return score_config(shards, tmp_path / "out", teacher, **given)


class LetsGo(Watched):
    """Lets go of what the faults hold when the actor that holds the place taken out has come up."""

    def __init__(self, faults: Faults) -> None:
        super().__init__()
        self._faults = faults
        self._updates = 0

    def update(self, totals: Totals) -> None:
        super().update(totals)
        self._updates += bool(totals.taken_out)
        # By the second update the actor has been asked for; it may have come up between two.
        if self._updates > 1 and not totals.starting:
            self._faults.go()


def run_with(
    faults: Faults, config: ScoreConfig, monkeypatch: pytest.MonkeyPatch, display: Watched | None = None
) -> ScoreSummary:
    faults.put_in_actors(monkeypatch)
    return run_score(config, display)


def test_a_gpu_that_ends_one_actor_after_another_is_left_out_and_costs_no_shard(
    shards: list[Path], teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "DEATHS", 4)
    # The other GPU does not finish the work before.
    held = tuple(f"photo-{number}-0002" for number in range(len(shards)))
    # An actor more than these would have no way to fail, and end the run.
    broken = {"1": ["score", "load", "crash", "missing"]}
    faults = Faults(folder=str(tmp_path), gpus=broken, hold=held)
    config, display = on_gpus(shards, tmp_path, teacher), LetsGo(faults)
    summary = run_with(faults, config, monkeypatch, display)
    assert (summary.exit_code, summary.done, summary.failed) == (0, len(shards), {})
    assert faults.marks("on.1") == 4
    score_here(score_config(shards, tmp_path / "expected", teacher))
    assert rows_of(config.out) == rows_of(tmp_path / "expected")
    provenance = [footer["provenance"] for footer in footers_of(config.out).values()]
    assert {tuple(entry["device_ids"]) for entry in provenance} == {("0",)}

    ((name, fault),) = summary.taken_out.items()
    (node,) = ray.nodes()
    assert name == f"GPU 1 of node {node['NodeManagerHostname']} ({node['NodeID'][:8]})"
    assert "its device failed: torch" in fault
    assert f"taken out: {name}: {fault}" in summary.lines(config.out)
    assert display.seen[-1].taken_out == (name,)
    assert {actors.starting for actors in display.seen[-1:]} == {0}, "the one that holds the GPU is no help"


def test_where_every_gpu_fails_the_run_says_so_and_gives_up_no_shard(
    shards: list[Path],
    teacher: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(places, "DEATHS", 2)
    faults = Faults(folder=str(tmp_path), gpus={"0": ["score"] * 3, "1": ["missing"] * 2})
    faults.put_in_actors(monkeypatch)
    config = on_gpus(shards, tmp_path, teacher)
    assert run_here(config, tmp_path) == 1
    (complaint,) = [line for line in capsys.readouterr().err.splitlines() if "patchsieve score: " in line]
    assert "no device is left to work on: " in complaint
    for part in ("GPU 0 of node", "uncorrectable ECC error", "GPU 1 of node", "torch", "driver"):
        assert part in complaint
    out = Path(config.out)
    assert list((out / "failed").glob("*.json")) == []
    assert leftovers(out) == []
    (record,) = (out / "runs").glob("*.json")
    assert len(json.loads(record.read_text())["taken_out"]) == 2
    # The work is there to be done.
    monkeypatch.undo()
    assert run_score(config).exit_code == 0


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_the_precision_is_chosen_once_on_unlike_gpus_and_where_actors_share_one(
    share: float, shards: list[Path], teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not every processor has another one.
    other = "bf16" if has_half(torch.device("cpu")) else "fp32"
    faults = Faults(folder=str(tmp_path), precisions={"0": "fp32", "1": other})
    config = on_gpus(shards, tmp_path, teacher, precision="auto", gpus_per_actor=share, cpus_per_actor=1)
    summary = run_with(faults, config, monkeypatch)
    assert (summary.exit_code, summary.done) == (0, len(shards))
    assert faults.marks("made") == 2 / share
    (chosen,) = [name for name in {"fp32", other} if faults.marks(f"chose.{name}")]
    assert faults.marks(f"chose.{chosen}") == 1
    assert {footer["config"]["precision"] for footer in footers_of(config.out).values()} == {chosen}


def test_actors_without_a_gpu_see_none_where_ray_leaves_them_visible(
    shards: list[Path], teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = Faults(folder=str(tmp_path), environment={"CUDA_VISIBLE_DEVICES": "0,1"})
    config = on_gpus(shards[:1], tmp_path, teacher, gpus_per_actor=0.0)
    assert run_with(faults, config, monkeypatch).exit_code == 0
    assert faults.marks("sees.") == 1
