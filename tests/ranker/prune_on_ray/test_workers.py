"""Workers of the prune job that die or fail as they start, answers that come twice, and answers that are errors."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from patchsieve.pipeline.errors import InfrastructureError, PatchsieveError
from patchsieve.pipeline.runs.config_file import config_to_yaml
from patchsieve.pipeline.shards.specs import Shard
from patchsieve.ranker.prune import ranking as prune_ranking
from patchsieve.ranker.prune.config import PruneConfig
from patchsieve.ranker.prune.ranking import PruneResult
from patchsieve.ranker.prune.request import make_prune_request
from patchsieve.ranker.prune.sample import prepare_sample
from patchsieve.ranker.prune_on_ray import waves as ray_prune
from patchsieve.ranker.prune_on_ray.run import prune
from patchsieve.ranker.prune_on_ray.starts import MOST_DEATHS
from patchsieve.ranker.prune_on_ray.summary import PruneSummary
from patchsieve.ranker.prune_on_ray.worker import PruneWorker
from tests.helpers.photos import photo_samples, write_shard
from tests.helpers.prune_runs import prune_config
from tests.helpers.score_runs import Watched

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("in")
    return [write_shard(folder / f"{n}.tar", photo_samples(2, n, height=80, width=100)) for n in range(2)]


def run_with(
    worker: Any, config: PruneConfig, monkeypatch: Any, display: Watched | None = None
) -> PruneSummary:
    monkeypatch.setattr(ray_prune, "PruneWorker", worker)
    return prune(make_prune_request(config), display or Watched(), settings=config_to_yaml(config))


def config_of(shards: list[Path], tmp_path: Path) -> PruneConfig:
    return prune_config(shards, tmp_path / "out", "baseline:variance")


def test_workers_whose_process_dies_as_they_start(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Worker(PruneWorker):
        def _start(self) -> None:
            with (tmp_path / "starts").open("a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(PatchsieveError, match=r"actor on node .* cannot start: its process died 3 times"):
        run_with(Worker, config_of(shards, tmp_path), monkeypatch)
    assert (tmp_path / "starts").read_text() == "x" * MOST_DEATHS


def test_a_worker_that_hangs_is_ended_and_its_sample_named(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Worker(PruneWorker):
        def _start(self) -> None:
            super()._start()

            def faulty_prepare(item: Any, *more: Any, **named: Any) -> Any:
                if item.key == "photo-0-0001":
                    threading.Event().wait()
                return prepare_sample(item, *more, **named)

            setattr(prune_ranking, "prepare_sample", faulty_prepare)  # noqa: B010 (no name of that module for mypy)

    monkeypatch.setattr(ray_prune, "ROUNDS", 1)
    summary = run_with(Worker, dataclasses.replace(config_of(shards, tmp_path), stall_timeout=2), monkeypatch)
    assert (summary.done, summary.exit_code) == (1, 1)
    assert list(summary.failed.values()) == ["no progress for 2 s, at work on photo-0-0001"]


def test_a_worker_that_cannot_come_back_from_its_death(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Worker(PruneWorker):
        def _start(self) -> None:
            if (tmp_path / "died").exists():
                raise OSError("the device is gone")
            super()._start()

            def faulty_prepare(item: Any, *more: Any, **named: Any) -> Any:
                if item.key == "photo-0-0001":
                    (tmp_path / "died").touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                return prepare_sample(item, *more, **named)

            setattr(prune_ranking, "prepare_sample", faulty_prepare)  # noqa: B010 (no name of that module for mypy)

    with pytest.raises(PatchsieveError, match="cannot start: OSError: the device is gone"):
        run_with(Worker, config_of(shards, tmp_path), monkeypatch)


def test_answers_that_come_twice_and_errors(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Worker(PruneWorker):
        def _start(self) -> None:
            super()._start()
            work = self._work.run

            def faulty_run(shard: Shard) -> PruneResult:
                if shard.name.endswith("1.tar"):
                    raise InfrastructureError("the store is away")
                return work(shard)

            self._work.run = faulty_run  # type: ignore[method-assign]

        def __call__(self, row: dict[str, Any]) -> list[dict[str, str]]:
            return super().__call__(row) * 2

    monkeypatch.setattr(ray_prune, "ROUNDS", 2)
    display = Watched()
    summary = run_with(Worker, config_of(shards, tmp_path), monkeypatch, display)
    assert (summary.exit_code, summary.done, summary.images) == (1, 1, 2)
    assert summary.failed == {str(shards[1]): "the store is away"}
    # Progress and a stop are looked at after every answer, errors too, and when a shard is given up.
    assert len(display.seen) == 2 + 1 + 1
