"""What an evaluation says: an oracle reaches the ceiling, chance does not, baselines and notes, and the report."""

from __future__ import annotations

import dataclasses
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.scoring.api import Teacher
from patchsieve.ranker.baselines.baselines import BASELINES, BaselineSources, make_baseline
from patchsieve.ranker.evaluate.measure import RANKER, Evaluation, agreements, evaluate_ranker
from patchsieve.ranker.evaluate.plot import draw_evaluation, require_plots
from patchsieve.ranker.evaluate.reconstruction import SHARES, SPACES
from patchsieve.ranker.evaluate.report import report_lines, to_json
from patchsieve.ranker.learning.agreement import spearman
from patchsieve.ranker.model.checkpoint import LoadedRanker
from tests.helpers.evaluations import (
    evaluation_images,
    made_up_fits,
    model_for_teacher,
    noisy_dense,
    ranker_of,
    small_teacher,
)
from tests.helpers.teachers import SMALL

IMAGES = 12


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    return small_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory, teacher: Teacher) -> LoadedRanker:
    return ranker_of(tmp_path_factory.mktemp("ranker"), teacher, **made_up_fits())


@pytest.fixture(scope="module")
def truth(ranker: LoadedRanker) -> np.ndarray:
    """What the ranker itself says, so that it is an oracle of scores made from it."""
    images = evaluation_images(IMAGES, ranker)
    with torch.inference_mode():
        scores = ranker.model.forward_image(images.patches).double().numpy()
    return (scores - scores.mean(1, keepdims=True)) / scores.std(1, keepdims=True)


@pytest.fixture(scope="module")
def evaluation(ranker: LoadedRanker, teacher: Teacher, truth: np.ndarray) -> Evaluation:
    dense = noisy_dense(truth, 0.5, teacher, patches=evaluation_images(IMAGES, ranker).patches)
    return evaluate_ranker(ranker, dense, teacher=teacher)


def test_an_oracle_reaches_the_ceiling_and_chance_does_not(teacher: Teacher) -> None:
    random = np.random.default_rng(0)
    truth = random.normal(size=(300, 196))
    dense = noisy_dense(truth, 0.5, teacher, patches=torch.zeros(300, 196, 1, dtype=torch.uint8))
    chances = random.normal(size=truth.shape).astype(np.float32)
    found = agreements({RANKER: truth.astype(np.float32), "random": chances}, dense)
    # Truth of variance 1 beside noise of variance 0.25.
    assert dense.rho == pytest.approx(0.8, abs=0.02)
    oracle, chance = found[RANKER], found["random"]
    assert oracle.spearman.value == pytest.approx(dense.ceiling, abs=0.01)
    assert oracle.of_ceiling.value == pytest.approx(1.0, abs=0.01)
    assert oracle.of_ceiling.low < oracle.of_ceiling.value < oracle.of_ceiling.high
    assert chance.spearman.low < 0 < chance.spearman.high
    assert abs(chance.of_ceiling.value) < 0.02
    assert [overlap.value for overlap in chance.overlap] == pytest.approx([0.1, 0.25, 0.5], abs=0.02)
    assert chance.ranker_ahead is not None
    assert chance.ranker_ahead.value == pytest.approx(oracle.spearman.value - chance.spearman.value)
    assert chance.ranker_ahead.low > 0.8
    assert oracle.ranker_ahead is None


def test_ranker_and_every_baseline_are_measured(
    evaluation: Evaluation, ranker: LoadedRanker, teacher: Teacher, truth: np.ndarray
) -> None:
    assert list(evaluation.agreement) == [RANKER, *BASELINES]
    assert evaluation.notes == ()
    dense = evaluation.dense
    assert evaluation.agreement[RANKER].per_image == pytest.approx(spearman(truth, dense.dense), abs=1e-6)
    assert evaluation.agreement[RANKER].of_ceiling.value == pytest.approx(1.0, abs=0.1)
    sources = BaselineSources(grid=SMALL.grid, patch_size=SMALL.patch_size, seed=1, teacher=teacher.model)
    for name in ("random", "gradient", "attention", "cluster"):
        baseline = make_baseline(name, sources)
        pairs = zip(dense.patches, dense.keys, strict=True)
        scores = np.stack([baseline(patches, key) for patches, key in pairs])
        assert evaluation.agreement[name].per_image == pytest.approx(spearman(scores, dense.dense))
    assert evaluation.rho.value == pytest.approx(dense.rho)
    assert evaluation.ceiling.value == pytest.approx(dense.ceiling)
    assert evaluation.halves.spearman.value == pytest.approx(dense.half_agreement.mean())
    assert evaluation.reconstruction is not None
    assert set(evaluation.reconstruction) == {RANKER, *BASELINES, "teacher's top", "teacher's bottom"}


def test_an_old_ranker_and_no_teacher_leave_baselines_out(
    tmp_path: Path, teacher: Teacher, truth: np.ndarray
) -> None:
    old = ranker_of(tmp_path / "old", teacher)
    dense = noisy_dense(truth, 0.5, teacher, patches=evaluation_images(IMAGES, old).patches)
    evaluation = evaluate_ranker(old, dense, extra_notes=["first"])
    assert set(BASELINES) - set(evaluation.agreement) == {"position", "ridge", "attention", "leverage"}
    assert evaluation.reconstruction is None
    assert evaluation.notes[0] == "first"
    assert evaluation.notes[1].startswith("baselines position and ridge are left out: old holds no fits")
    assert (
        evaluation.notes[2]
        == "baselines without the teacher that they need are left out: attention, leverage"
    )
    few = evaluate_ranker(old, dense, baselines=["grid"])
    assert (list(few.agreement), few.notes) == ([RANKER, "grid"], ())


def test_scores_of_another_teacher_are_refused(
    ranker: LoadedRanker, teacher: Teacher, truth: np.ndarray
) -> None:
    dense = dataclasses.replace(
        noisy_dense(truth, 0.5, teacher), teacher={"name": "other", "digest": "f" * 64}
    )
    with pytest.raises(
        UserError, match=r"learned from teacher small \([0-9a-f]{16}\), not from other \(f{16}\)"
    ):
        evaluate_ranker(ranker, dense)


def test_a_teacher_of_unknown_output_draws_no_reconstruction(
    tmp_path: Path, teacher: Teacher, truth: np.ndarray
) -> None:
    silent = small_teacher(tmp_path, output_space="unknown")
    ranker = ranker_of(tmp_path / "ranker", silent)
    dense = noisy_dense(truth, 0.5, silent, patches=evaluation_images(IMAGES, ranker).patches)
    evaluation = evaluate_ranker(ranker, dense, teacher=silent, baselines=["grid"])
    assert evaluation.reconstruction is None
    assert "--output-space" in evaluation.notes[0]


def test_json_holds_what_was_measured(evaluation: Evaluation) -> None:
    told = json.loads(to_json(evaluation, run_id="run-1"))
    assert told["images"] == IMAGES
    assert told["rho"] == dataclasses.asdict(evaluation.rho)
    assert told["dense"]["masks"] == "spread"
    ridge = evaluation.agreement["ridge"]
    assert told["agreement"]["ridge"]["spearman"]["value"] == ridge.spearman.value
    assert told["agreement"]["ridge"]["ranker_ahead"]["low"] == ridge.ranker_ahead.low  # type: ignore[union-attr]
    assert told["agreement"]["ranker"]["ranker_ahead"] is None
    curves = told["reconstruction"]
    assert curves["shares"] == list(SHARES)
    assert "without a gate" in curves["note"]
    for name, curve in curves["selectors"].items():
        assert [len(curve["errors"][space]) for space in SPACES] == [len(SHARES)] * 2
        assert bool(curve["versus_ranker"]) == (name != RANKER)


def test_what_is_no_number_is_null(teacher: Teacher, ranker: LoadedRanker) -> None:
    flat = noisy_dense(np.zeros((2, SMALL.positions)), 0.5, teacher)
    evaluation = evaluate_ranker(ranker, flat, baselines=["variance"])
    # Images without texture have no order by variance.
    assert (
        json.loads(to_json(evaluation, run_id="run-1"))["agreement"]["variance"]["spearman"]["value"] is None
    )
    assert any(line.split()[:2] == ["variance", "-"] for line in report_lines(evaluation))


def test_lines_name_everything_once_and_fit(evaluation: Evaluation) -> None:
    lines = report_lines(evaluation)
    first = [line.split()[0] for line in lines if line.startswith("  ")]
    assert [first.count(name) for name in (RANKER, *BASELINES)] == [2] * (1 + len(BASELINES))
    assert max(map(len, lines)) <= 160
    halves = next(line for line in lines if "half against half" in line)
    assert f"{evaluation.halves.tau.value:.3f}" in halves


@pytest.mark.parametrize("diagnostic", [True, False])
def test_the_plot_is_a_png(evaluation: Evaluation, diagnostic: bool) -> None:
    if not diagnostic:
        evaluation = dataclasses.replace(evaluation, reconstruction=None)
    drawn = draw_evaluation(evaluation)
    assert drawn[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", drawn[16:24])
    assert (width, height) == ((1705 if diagnostic else 825), 594)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    require_plots("a plot")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^a plot needs matplotlib: pip install matplotlib$"):
        require_plots("a plot")


def test_the_ranker_runs_in_batches(ranker: LoadedRanker, teacher: Teacher, truth: np.ndarray) -> None:
    class Counting(nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.inner, self.head = model, model.head
            self.sizes: list[int] = []

        def forward_image(self, patches: torch.Tensor) -> torch.Tensor:
            self.sizes.append(len(patches))
            return self.inner.forward_image(patches)

    counting = Counting(model_for_teacher())
    dense = noisy_dense(truth, 0.5, teacher, patches=evaluation_images(IMAGES, ranker).patches)
    counted = dataclasses.replace(ranker, model=counting)
    found = evaluate_ranker(counted, dense, baselines=[], batch_size=5)
    assert counting.sizes == [5, 5, 2]
    assert found.agreement[RANKER].per_image == pytest.approx(spearman(truth, dense.dense), abs=1e-6)
