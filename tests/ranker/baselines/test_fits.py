"""Fits to score tables: against plain loops and a dense solution, what they recover, and what they leave out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from patchsieve.pipeline.tables.reader import ScoreTables
from patchsieve.ranker.baselines import fits
from patchsieve.ranker.baselines.features import FEATURES, pixel_features
from patchsieve.ranker.baselines.fits import CHUNK_ROWS, BaselineFits, fitted_values
from patchsieve.ranker.batches.batch import Batch
from patchsieve.ranker.batches.index import Context, index_tables
from patchsieve.ranker.batches.stream import TableBatches
from tests.helpers.pixel_tables import GRID, PATCH, VISIBLE, write_pixel_table


def fitted(batches: Iterable[Batch], **options: object) -> dict[str, Any]:
    """Both fits to some batches."""
    found = BaselineFits(grid=GRID, patch_size=PATCH, **options)
    for batch in batches:
        found.add(batch)
    return found.result()


def made_batch(rows: int, seed: int = 0) -> Batch:
    """Views of random patches of random contrast at random places, with random scores."""
    random = np.random.default_rng(seed)
    places = np.stack([np.sort(random.permutation(GRID**2)[:VISIBLE]) for _ in range(rows)])
    spread = random.uniform(0, 1, (rows, VISIBLE, 1))
    pixels = 128 + random.uniform(-127, 127, (rows, VISIBLE, PATCH**2 * 3)) * spread
    return Batch(
        epoch=0,
        step=0,
        patches=torch.from_numpy(pixels.astype(np.uint8)),
        positions=torch.from_numpy(places),
        scores=torch.from_numpy(random.gamma(2.0, size=(rows, VISIBLE)).astype(np.float32)),
        sample_keys=tuple(f"image-{i:04d}" for i in range(rows)),
        views=(0,) * rows,
    )


def standardised(scores: torch.Tensor) -> np.ndarray:
    values = scores.double().numpy()
    return (values - values.mean(1, keepdims=True)) / values.std(1, keepdims=True)


@pytest.mark.parametrize("target", ["raw", "standardised"])
def test_position_is_the_mean_target_of_each_place(target: str) -> None:
    batch = made_batch(40)
    values = batch.scores.double().numpy() if target == "raw" else standardised(batch.scores)
    seen: dict[int, list[float]] = {}
    for row, places in enumerate(batch.positions.tolist()):
        for column, place in enumerate(places):
            seen.setdefault(place, []).append(float(values[row, column]))
    found = fitted([batch], target=target)["position"]["position"]
    assert found == pytest.approx([sum(seen[place]) / len(seen[place]) for place in range(GRID**2)], abs=1e-6)


def test_places_never_seen_get_the_mean_of_all() -> None:
    batch = made_batch(1)
    found = fitted([batch], target="raw")["position"]["position"]
    unseen = sorted(set(range(GRID**2)) - set(batch.positions[0].tolist()))
    assert [found[place] for place in unseen] == pytest.approx([float(batch.scores.mean())] * len(unseen))


def test_ridge_solves_the_dense_problem() -> None:
    batch, penalty = made_batch(CHUNK_ROWS + 30), 3.0
    rows, answers = [], []
    values = standardised(batch.scores)
    for row in range(len(batch)):
        columns = np.zeros((VISIBLE, GRID**2 + len(FEATURES)))
        columns[range(VISIBLE), batch.positions[row]] = 1
        columns[:, GRID**2 :] = pixel_features(batch.patches[row]).numpy()
        rows.append(columns - columns.mean(axis=0))
        answers.append(values[row])
    design, answer = np.concatenate(rows), np.concatenate(answers)
    scale = np.ones(design.shape[1])
    scale[GRID**2 :] = np.sqrt(np.square(design[:, GRID**2 :]).mean(axis=0))
    # Ridge regression as ordinary least squares with one more row for each weight.
    stacked = np.concatenate([design / scale, penalty**0.5 * np.eye(design.shape[1])])
    solved = (
        np.linalg.lstsq(stacked, np.concatenate([answer, np.zeros(design.shape[1])]), rcond=None)[0] / scale
    )

    ridge = fitted([batch], penalty=penalty)["ridge"]
    assert ridge["position"] == pytest.approx(solved[: GRID**2].tolist(), rel=1e-4, abs=1e-6)
    features = [ridge["features"][name] for name in FEATURES]
    assert features == pytest.approx(solved[GRID**2 :].tolist(), rel=1e-4, abs=1e-5)


def test_fits_do_not_depend_on_batches() -> None:
    batch = made_batch(20)

    def part(start: int, stop: int) -> Batch:
        rows = slice(start, stop)
        return dataclasses.replace(
            batch,
            patches=batch.patches[rows],
            positions=batch.positions[rows],
            scores=batch.scores[rows],
            sample_keys=batch.sample_keys[rows],
            views=batch.views[rows],
        )

    whole = fitted([batch])
    parts = fitted([part(0, 3), part(3, 17), part(17, 20)])
    assert parts["position"]["position"] == pytest.approx(whole["position"]["position"], abs=1e-9)
    assert parts["ridge"]["features"] == pytest.approx(whole["ridge"]["features"], rel=1e-6)


def test_ridge_finds_the_order_that_features_and_place_give() -> None:
    def truth(batch: Batch) -> torch.Tensor:
        contrast = pixel_features(batch.patches)[..., FEATURES.index("contrast")]
        return 4 * contrast + 0.1 * batch.positions

    seen, unseen = made_batch(300), made_batch(50, seed=1)
    # Each image has a level of its own, which says nothing about an order.
    level = torch.from_numpy(np.random.default_rng(2).normal(0, 100, (300, 1)))
    scored = dataclasses.replace(seen, scores=(truth(seen) + level).float())
    fit = fitted([scored], target="raw", penalty=0.1)["ridge"]
    position, weights = fitted_values(fit, grid=GRID, patch_size=PATCH)
    found = position[unseen.positions.numpy()] + (pixel_features(unseen.patches) @ weights).numpy()
    expected = truth(unseen).numpy()
    correlation = [np.corrcoef(one, other)[0, 1] for one, other in zip(found, expected, strict=True)]
    assert min(correlation) > 0.99


def test_whole_views_give_their_visible_patches(tmp_path: Path) -> None:
    table = write_pixel_table(tmp_path / "scores" / "a.parquet", images=range(6), store="view")

    def first_pass(context: Context) -> dict[str, Any]:
        index = index_tables(ScoreTables(table), context=context)
        with TableBatches(index, batch_size=4, seed=0).stream(epochs=1) as stream:
            return fitted(stream)

    assert first_pass("full") == first_pass("visible")


def test_sums_go_on_from_a_state_and_end_with_enough_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two, three = (made_batch(20, seed) for seed in range(3))
    monkeypatch.setattr(fits, "FITTED_ROWS", 30)
    first = BaselineFits(grid=GRID, patch_size=PATCH)
    first.add(one)
    state = first.state()
    later = BaselineFits(grid=GRID, patch_size=PATCH)
    later.load_state(state)
    for batch in (two, three):
        first.add(batch)
        later.add(batch)
    assert first.result() == later.result() == fitted([one, two])
    assert first.result()["ridge"]["rows"] == 40
    assert json.loads(json.dumps(first.result(), allow_nan=False)) == first.result()


def test_flat_images_and_equal_scores_give_finite_fits() -> None:
    batch = made_batch(4)
    flat = dataclasses.replace(
        batch, patches=torch.full_like(batch.patches, 7), scores=torch.full_like(batch.scores, 0.5)
    )
    found = fitted([flat])
    assert set(found["ridge"]["features"].values()) == {0.0}
    assert set(found["ridge"]["position"]) == set(found["position"]["position"]) == {0.0}


def test_no_penalty_is_refused() -> None:
    with pytest.raises(ValueError, match="not above 0"):
        fitted([], penalty=0.0)
