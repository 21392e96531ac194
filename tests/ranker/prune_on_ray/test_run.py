"""The whole prune job on Ray Data: equal to this process, resumed, killed, with a budget that is frozen."""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.images.decode import decode_image
from patchsieve.pipeline.runs.config_file import config_to_yaml
from patchsieve.pipeline.runs.status import read_status
from patchsieve.ranker.model.api import rank_images
from patchsieve.ranker.model.checkpoint import load_ranker
from patchsieve.ranker.prune import ranking as prune_ranking
from patchsieve.ranker.prune.config import PruneConfig
from patchsieve.ranker.prune.request import make_prune_request
from patchsieve.ranker.prune.sample import prepare_sample
from patchsieve.ranker.prune_on_ray import waves as ray_prune
from patchsieve.ranker.prune_on_ray.run import prune
from patchsieve.ranker.prune_on_ray.summary import PruneSummary
from patchsieve.ranker.prune_on_ray.worker import PruneWorker
from tests.helpers.photos import photo_samples, write_shard
from tests.helpers.prune_runs import contents, index_of, prune_config, prune_here, save_small_ranker
from tests.helpers.score_processes import leftovers
from tests.helpers.score_runs import Watched

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_small_ranker(tmp_path_factory.mktemp("ranker"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("in")
    listed = [
        write_shard(folder / f"{n}.tar", photo_samples(5 + n, n, height=80, width=100)) for n in range(3)
    ]
    bad = [*photo_samples(3, 7, 80, 100), ("text", {"jpg": b"no picture"})]
    return [*listed, write_shard(folder / "bad.tar", bad)]


def run_prune(config: PruneConfig, display: Watched | None = None) -> PruneSummary:
    return prune(make_prune_request(config), display or Watched(), settings=config_to_yaml(config))


def killing(marks: Path, *, always: str = "", before: str = "") -> Any:
    """A worker that dies at every sample of the key `always`, and once before it names a file that fits `before`."""

    class Worker(PruneWorker):
        def __init__(self, order: Any) -> None:
            super().__init__(order)
            replace = os.replace

            def faulty_prepare(item: Any, *more: Any, **named: Any) -> Any:
                if always and getattr(item, "key", None) == always:
                    with (marks / "always").open("a") as file:
                        file.write("x")
                    os.kill(os.getpid(), signal.SIGKILL)
                return prepare_sample(item, *more, **named)

            def faulty_replace(source: Any, target: Any, **options: Any) -> None:
                done = marks / "before"
                if before and fnmatch.fnmatch(os.fspath(target), before) and not done.exists():
                    done.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                replace(source, target, **options)

            setattr(prune_ranking, "prepare_sample", faulty_prepare)  # noqa: B010 (no name of that module for mypy)
            os.replace = faulty_replace  # type: ignore[assignment]

    return Worker


def test_the_job_gives_what_this_process_gives(shards: list[Path], ranker: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"select": "window", "background": 16}
    config = prune_config(shards, tmp_path / "out", ranker, **options)
    display = Watched()
    summary = run_prune(config, display)
    assert (summary.exit_code, summary.done, summary.done_before) == (0, 4, 0)
    assert (summary.samples, summary.bad, summary.images) == (22, 1, 21)
    assert (summary.kept, summary.coarse, summary.patches) == (21 * 7, 21, 21 * 16)
    told = "tokens: as many as 168 of 336 patches, 50.0%, 21 of them in thumbnails"
    assert told in summary.lines(config.out)
    prune_here(prune_config(shards, tmp_path / "here", ranker, **options))
    assert contents(tmp_path / "out") == contents(tmp_path / "here")
    assert display.seen[-1].done == 4
    status = read_status(config.out)
    assert (status.done, status.missing, status.failed, status.quarantined) == (4, 0, 0, 1)
    assert leftovers(tmp_path / "out") == []

    again = run_prune(config)
    assert (again.exit_code, again.done_before, again.images) == (0, 4, 0)
    # A tar that was lost or cut is made again; its index alone does not make a shard done.
    (tmp_path / "out" / "shards" / "1.tar").unlink()
    (tmp_path / "out" / "shards" / "2.tar").write_bytes(b"short")
    assert run_prune(config).done_before == 2
    assert contents(tmp_path / "out") == contents(tmp_path / "here")
    with pytest.raises(UserError, match="--keep, in patches of an image: 7 -> 3"):
        run_prune(prune_config(shards, tmp_path / "out", ranker, keep=0.25, **options))


def test_killed_between_tar_and_index(
    shards: list[Path], ranker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    monkeypatch.setattr(ray_prune, "PruneWorker", killing(marks, before="*/out/index/1-*.parquet"))
    summary = run_prune(prune_config(shards, tmp_path / "out", ranker))
    assert (marks / "before").exists()
    assert (summary.exit_code, summary.done, summary.failed) == (0, 4, {})
    prune_here(prune_config(shards, tmp_path / "here", ranker))
    assert contents(tmp_path / "out") == contents(tmp_path / "here")
    assert leftovers(tmp_path / "out") == []


def test_a_shard_that_always_kills_its_worker_fails_alone(
    shards: list[Path], ranker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    monkeypatch.setattr(ray_prune, "PruneWorker", killing(marks, always="photo-1-0002"))
    summary = run_prune(prune_config(shards, tmp_path / "out", ranker))
    assert (summary.exit_code, summary.done) == (1, 3)
    assert list(summary.failed) == [str(shards[1])]
    assert (marks / "always").read_text() == "x" * ray_prune.ROUNDS
    assert read_status(str(tmp_path / "out")).failed == 1
    monkeypatch.undo()
    healed = run_prune(prune_config(shards, tmp_path / "out", ranker))
    assert (healed.exit_code, healed.done_before, healed.done) == (0, 3, 4)


def test_a_budget_is_found_once_and_holds_for_later_shards(
    shards: list[Path], ranker: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    changes: dict[str, Any] = {"target_ratio": 0.4}
    first = run_prune(prune_config(shards[:3], out, ranker, **changes))
    kept = [row["kept"] for row in index_of(out)]
    assert (first.exit_code, first.kept, sum(kept)) == (0, int(18 * 16 * 0.4), first.kept)
    plan = (out / "plan.json").read_bytes()
    files = [path for folder in ("shards", "index") for path in (out / folder).iterdir()]
    written = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}
    second = run_prune(prune_config(shards, out, ranker, **changes))
    assert (second.exit_code, second.done_before, second.done) == (0, 3, 4)
    assert (out / "plan.json").read_bytes() == plan
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files} == written
    # The new shard keeps every patch whose log mass reaches the frozen threshold, and at least one.
    new = [row for row in index_of(out) if row["sample_key"].startswith("photo-7-") and row["kept"]]
    photos = [
        decode_image(fields["jpg"]).permute(1, 2, 0).numpy() for _, fields in photo_samples(3, 7, 80, 100)
    ]
    threshold, loaded = json.loads(plan)["threshold"], load_ranker(ranker)
    for row, scores_L in zip(new, rank_images(photos, loaded).astype(np.float64), strict=True):
        masses_L = scores_L / loaded.temperature
        masses_L -= np.log(np.exp(masses_L - masses_L.max()).sum()) + masses_L.max()
        assert row["kept"] == max(1, int((masses_L >= threshold).sum()))
    # A plan that is there decides, also where nothing else is.
    shutil.rmtree(out / "shards")
    assert run_prune(prune_config(shards[:1], out, ranker, **changes)).done_before == 0
