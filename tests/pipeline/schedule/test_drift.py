"""The drift watch: a ranker is evaluated on a share of each new corpus, and what it lost is told."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from patchsieve.jobs.arguments import read_config
from patchsieve.jobs.schedule import _with_score_options
from patchsieve.pipeline.cluster.known_job import JobEnd
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.schedule.config import OnceConfig
from patchsieve.pipeline.schedule.drift import OfCeiling, has_fallen, share_of
from patchsieve.pipeline.schedule.run import run_once
from patchsieve.pipeline.shards.specs import Shard
from patchsieve.ranker.evaluate.config import EvaluateConfig
from tests.pipeline.schedule.test_schedule import NOW, Bench


def evaluated(folder: Path, value: float, *, digest: str = "ranker-1", half: float = 0.02) -> str:
    """A folder with what `evaluate` writes, as far as the watch reads it."""
    of_ceiling = {"value": value, "low": value - half, "high": value + half, "images": 200}
    folder.mkdir(parents=True, exist_ok=True)
    about = {"ranker": {"digest": digest}, "agreement": {"ranker": {"of_ceiling": of_ceiling}}}
    (folder / "evaluation.json").write_text(json.dumps(about))
    return str(folder)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path)
    for number in range(10):
        made.add("a", f"{number}.tar")
    made.add("a", "_SUCCESS")
    return made


def watching(bench: Bench, **changes: Any) -> dict[str, Any]:
    reference = evaluated(bench.folder / "reference", 0.9)
    return {"drift": 0.2, "drift_ranker": "r", "drift_reference": reference, "teacher": "tiny", **changes}


def test_a_new_corpus_is_scored_and_a_share_of_it_evaluated(bench: Bench) -> None:
    assert bench.tick(tick="t", **watching(bench, drift_gpus=1.0)) == 0
    score, drift = bench.jobs.commands.values()
    assert score[1] == "score"
    listed = Path(drift[2].removeprefix("@")).read_text().splitlines()
    assert len(listed) == 2
    config = read_config("evaluate", EvaluateConfig, [str(listed[0]), *drift[3:]])
    out = f"{bench.folder}/out/a/drift"
    assert (config.ranker, config.teacher, config.out, config.plot) == ("r", "tiny", out, False)
    assert not config.unsorted
    assert "; its drift is measured by drift-of-patchsieve-a-" in bench.said[0]
    # It is none of --max-jobs, which leave the corpus its place.
    bench.add("b", "0.tar")
    bench.tick(
        tick="u",
        min_age=0.5,
        max_jobs=2,
        **watching(bench),
        score_options=("--teacher", "tiny", "--unsorted"),
    )
    assert list(bench.jobs.commands.values())[-1][-1] == "--unsorted"
    assert [key.partition("-b-")[0] for key in bench.jobs.commands][2:] == [
        "patchsieve",
        "drift-of-patchsieve",
    ]
    # The next tick waits for it, and one that finds that it failed says so.
    bench.tick(tick="v", **watching(bench))
    assert len(bench.jobs.commands) == 4
    assert "its drift is measured by" in bench.said[0]
    bench.jobs.ends[list(bench.jobs.commands)[1]] = JobEnd(state="failed", exit_code=2, why="no images")
    bench.tick(tick="w", **watching(bench))
    assert "failed with exit code 2: no images" in bench.said[0]


@pytest.mark.parametrize(
    ("value", "digest", "told"),
    [
        (0.7, "ranker-1", "DRIFT: the ranker reaches 0.700 [0.680, 0.720] of 200 images"),
        (0.88, "ranker-1", "no drift: the ranker reaches 0.880"),
        (0.9, "ranker-2", "its drift was measured with another ranker"),
    ],
)
def test_what_the_evaluation_found_is_told(bench: Bench, value: float, digest: str, told: str) -> None:
    evaluated(bench.folder / "out/a/drift", value, digest=digest)
    config = dataclasses.replace(bench.config, **watching(bench))
    code, about = run_once(config, bench.said.append, connect=lambda address: bench.jobs, now=lambda: NOW)
    assert code == 0, "a warning, no failure"
    assert told in bench.said[0]
    assert told in about["corpora"][0]["drift"]
    assert len(bench.jobs.commands) == 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_no_all_clear(bench: Bench, value: float) -> None:
    evaluated(bench.folder / "out/a/drift", value)
    assert bench.tick(**watching(bench)) == 1
    assert "drift/evaluation.json is damaged" in bench.said[0]
    assert len(bench.jobs.commands) == 1, "the corpus is scored all the same"


def test_nothing_is_watched_in_a_dry_run_or_unasked(bench: Bench) -> None:
    bench.tick(dry_run=True, **watching(bench))
    assert not bench.jobs.commands
    bench.tick()
    assert len(bench.jobs.commands) == 1
    assert "drift" not in bench.said[0]


def test_settings_that_make_no_watch_are_refused(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="go together"):
        bench.tick(drift=0.1)
    with pytest.raises(UserError, match="--drift is 2"):
        bench.tick(**watching(bench, drift=2))
    with pytest.raises(UserError, match="--drift-gpus"):
        bench.tick(drift_gpus=1.0)
    with pytest.raises(UserError, match=r"has no evaluation.json: make it with patchsieve evaluate"):
        bench.tick(**watching(bench, drift_reference=str(tmp_path / "none")))
    Path(evaluated(tmp_path / "odd", 0.5), "evaluation.json").write_text('{"agreement": null}')
    with pytest.raises(UserError, match="odd"):
        bench.tick(**watching(bench, drift_reference=str(tmp_path / "odd")))
    assert not bench.jobs.commands


def test_the_teacher_is_that_of_the_score_options() -> None:
    config = OnceConfig(source=("in/*/",), out="out")
    assert _with_score_options(config, ["--teacher", "tiny"]).teacher == "tiny"
    assert _with_score_options(config, []).teacher == "mae-base"


def test_samples_of_one_corpus_are_silent_and_a_fall_is_told() -> None:
    rng = np.random.default_rng(0)

    def measured(mean: float) -> OfCeiling:
        found = rng.normal(mean, 0.2, 100)
        value, half = float(found.mean()), 1.96 * float(found.std()) / 10
        return OfCeiling(value=value, low=value - half, high=value + half, images=100)

    alike = [has_fallen(measured(0.7), measured(0.7)) for _ in range(200)]
    assert sum(alike) <= 10, "2.5 % are expected"
    assert all(has_fallen(measured(0.55), measured(0.7)) for _ in range(20))
    assert not has_fallen(measured(0.9), measured(0.7)), "better is no drift"


def test_a_share_is_the_same_whenever_it_is_asked() -> None:
    shards = [Shard(f"/{n}.tar", f"/{n}.tar", f"id-{n}", 10, "tag") for n in range(300)]
    chosen = share_of(shards, 0.01)
    assert len(chosen) == 3
    assert share_of(shards[::-1], 0.01) == chosen
    assert len(share_of(shards[:5], 0.01)) == 1
