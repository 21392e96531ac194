"""Prune on GPUs that fail or are not there, and what is left of its probe; the GPUs are only declared."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from patchsieve.pipeline.cluster import trial
from patchsieve.pipeline.cluster.nodes import this_place
from patchsieve.pipeline.cluster.places import DEATHS
from patchsieve.pipeline.cluster.slots import ActorSize
from patchsieve.pipeline.cluster.trial import Trial
from patchsieve.pipeline.compute.gpu_faults import DECLARED_GPUS
from patchsieve.pipeline.errors import PatchsieveError
from patchsieve.pipeline.output.machine import process_start
from patchsieve.pipeline.runs.config_file import config_to_yaml
from patchsieve.pipeline.shards.specs import Shard
from patchsieve.ranker.prune.ranking import PruneResult
from patchsieve.ranker.prune.request import make_prune_request
from patchsieve.ranker.prune_on_ray import waves as ray_prune
from patchsieve.ranker.prune_on_ray.probe import precision_on_cluster
from patchsieve.ranker.prune_on_ray.run import prune
from patchsieve.ranker.prune_on_ray.worker import PruneOrder, PruneWorker
from tests.helpers.photos import photo_samples, write_shard
from tests.helpers.prune_runs import prune_config, save_small_ranker
from tests.helpers.score_processes import wait_until
from tests.helpers.score_runs import Watched

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]

GPU = ActorSize(cpus=1, gpus=1)


def dead(*_: Any, **__: Any) -> Any:
    raise torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered\nmore of it")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("in")
    return [write_shard(folder / f"{n}.tar", photo_samples(2, n, height=80, width=100)) for n in range(8)]


def run_with(worker: Any, shards: list[Path], tmp_path: Path, monkeypatch: Any, **changes: Any) -> Any:
    monkeypatch.setattr(ray_prune, "PruneWorker", worker)
    given: dict[str, Any] = {"gpus_per_actor": 1.0, "max_actors": 2, **changes}
    config = prune_config(shards, tmp_path / "out", "baseline:variance", **given)
    return prune(make_prune_request(config), Watched(), settings=config_to_yaml(config))


def test_a_gpu_that_fails_again_and_again_is_left_out_and_costs_no_shard(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, starts = tmp_path / "begun", tmp_path / "starts"

    class Worker(PruneWorker):
        def __init__(self, order: PruneOrder) -> None:
            if this_place().gpus == ("1",):
                with begun.open("a") as file:
                    file.write("x")
            super().__init__(order)

        def _start(self) -> None:
            if self._place.gpus == ("1",):
                with starts.open("a") as file:
                    file.write("x")
                os.environ.pop(DECLARED_GPUS)
            super()._start()
            work = self._work.run

            def late(shard: Shard) -> PruneResult:
                # The work is not done before the other GPU is taken out: a worker there then does not start.
                wait_until(
                    lambda: begun.exists() and begun.read_text() == "x" * (DEATHS + 1),
                    "the other GPU taken out",
                )
                return work(shard)

            self._work.run = late  # type: ignore[method-assign]

    summary = run_with(Worker, shards, tmp_path, monkeypatch)
    assert (summary.exit_code, summary.done, summary.failed) == (0, len(shards), {})
    assert starts.read_text() == "x" * DEATHS
    ((name, fault),) = summary.taken_out.items()
    assert name.startswith("GPU 1 of node ")
    assert "cannot use the GPU that was assigned" in fault
    assert f"taken out: {name}: {fault}" in summary.lines(str(tmp_path / "out"))


def test_a_fault_of_the_gpu_ends_the_process_and_its_shard_is_tried_again(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Worker(PruneWorker):
        def _start(self) -> None:
            super()._start()
            work = self._work.run

            def faulty(shard: Shard) -> PruneResult:
                with (tmp_path / "pids").open("a") as file:
                    file.write(f"{os.getpid()}\n")
                return dead() if not (tmp_path / "broke").exists() and self._broke() else work(shard)

            self._work.run = faulty  # type: ignore[method-assign]

        def _broke(self) -> bool:
            (tmp_path / "broke").write_text(str(os.getpid()))
            return True

    summary = run_with(Worker, shards[:3], tmp_path, monkeypatch, max_actors=1)
    assert (summary.exit_code, summary.done, summary.failed, summary.taken_out) == (0, 3, {}, {})
    pids = (tmp_path / "pids").read_text().split()
    # Nothing more was asked of the process that broke.
    assert pids.count((tmp_path / "broke").read_text()) == 1


def test_fewer_actors_than_gpus_reach_another_gpu_where_the_first_one_fails(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Worker(PruneWorker):
        def _start(self) -> None:
            if not (tmp_path / "first").exists():
                (tmp_path / "first").write_text(self._place.gpus[0])
            if self._place.gpus == ((tmp_path / "first").read_text(),):
                dead()
            super()._start()

    summary = run_with(Worker, shards[:2], tmp_path, monkeypatch, max_actors=1)
    assert (summary.exit_code, summary.done, summary.failed) == (0, 2, {})
    ((name, fault),) = summary.taken_out.items()
    assert name.startswith(f"GPU {(tmp_path / 'first').read_text()} of node ")
    assert "ECC error" in fault


def test_where_every_gpu_fails_the_run_says_so(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Worker(PruneWorker):
        def _start(self) -> None:
            dead()

    with pytest.raises(
        PatchsieveError, match=r"no device is left to work on: GPU . of .*ECC error.*; GPU . of"
    ):
        run_with(Worker, shards[:2], tmp_path, monkeypatch, max_actors=1)


def test_workers_without_a_gpu_see_none(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Worker(PruneWorker):
        def _start(self) -> None:
            os.environ["CUDA_VISIBLE_DEVICES"] = "0,1"  # as Ray leaves it
            super()._start()
            (tmp_path / "visible").write_text(os.environ["CUDA_VISIBLE_DEVICES"])

    summary = run_with(Worker, shards[:1], tmp_path, monkeypatch, gpus_per_actor=0.0, max_actors=1)
    assert summary.exit_code == 0
    assert (tmp_path / "visible").read_text() == ""


def test_nothing_of_the_probe_is_left_when_the_workers_are_asked_for(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Noted(Trial):
        def call(self, function: Any) -> Any:
            (tmp_path / "pid").write_text(str(os.getpid()))
            return super().call(function)

    monkeypatch.setattr(trial, "Trial", Noted)
    config = prune_config(shards, tmp_path / "out", save_small_ranker(tmp_path), precision="auto")
    assert precision_on_cluster(make_prune_request(config).source, GPU, 2, lambda: None) in {"fp32", "bf16"}
    assert process_start(int((tmp_path / "pid").read_text())) is None


def test_the_probe_goes_to_another_gpu_where_one_fails(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class First(Trial):
        def call(self, function: Any) -> Any:
            os.environ[DECLARED_GPUS] = "" if this_place().gpus == ("0",) else "cpu"
            return super().call(function)

    config = prune_config(shards, tmp_path / "out", save_small_ranker(tmp_path), precision="auto")
    source = make_prune_request(config).source
    monkeypatch.setattr(trial, "Trial", First)
    assert precision_on_cluster(source, GPU, 2, lambda: None) in {"fp32", "bf16"}

    class Neither(Trial):
        def call(self, function: Any) -> Any:
            os.environ[DECLARED_GPUS] = ""
            return super().call(function)

    monkeypatch.setattr(trial, "Trial", Neither)
    with pytest.raises(
        PatchsieveError, match=r"no device is left to try the ranker on: GPU . of .*; GPU . of"
    ):
        precision_on_cluster(source, GPU, 2, lambda: None)
