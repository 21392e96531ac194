"""The linear classifier against plain loops over Python numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from patchsieve.ranker.prove.probe import PENALTIES, choose_penalty, fit_probe

CLASSES, PENALTY = 3, 0.05


def problem(count: int = 30, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features that tell the classes apart, but not quite; one of them is the same for all."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    features = random.normal(size=(count, 4)) + 1.5 * np.eye(CLASSES, 4)[labels]
    features[:, 3] = 7.0
    return features.astype(np.float32), labels.astype(np.int64)


def standardised(features: np.ndarray) -> list[list[float]]:
    columns = []
    for column in features.astype(float).T.tolist():
        mean = sum(column) / len(column)
        spread = math.sqrt(sum((value - mean) ** 2 for value in column) / len(column))
        columns.append([(value - mean) / (spread or 1.0) for value in column])
    return [list(row) for row in zip(*columns, strict=True)]


def gradient_of_loops(
    rows: list[list[float]],
    labels: list[int],
    weights: np.ndarray,
    bias: np.ndarray,
    penalty: float = PENALTY,
) -> tuple[np.ndarray, np.ndarray]:
    """Of the mean cross-entropy and half the penalty times the squared weights, image by image."""
    down, up = np.zeros_like(weights), np.zeros_like(bias)
    for row, label in zip(rows, labels, strict=True):
        logits = [bias[c] + sum(w * x for w, x in zip(weights[c], row, strict=True)) for c in range(CLASSES)]
        total = sum(math.exp(logit - max(logits)) for logit in logits)
        for c in range(CLASSES):
            error = (math.exp(logits[c] - max(logits)) / total - (c == label)) / len(rows)
            up[c] += error
            down[c] += error * np.array(row)
    return down + penalty * weights, up


@pytest.mark.parametrize("penalty", [1.0, 1e-2, 1e-4])
def test_it_stops_where_the_loss_is_flat_however_the_features_are_scaled_and_turned(penalty: float) -> None:
    random = np.random.default_rng(0)
    features, labels = problem(60)
    # Close to each other and far apart, as an encoder's features are.
    features = np.concatenate(
        [features, features @ random.normal(size=(4, 8)) + 0.01 * random.normal(size=(60, 8))], 1
    )
    found = fit_probe(features.astype(np.float32), labels, CLASSES, penalty)
    rows = standardised(features.astype(np.float32))
    down, up = gradient_of_loops(rows, labels.tolist(), found.weights, found.bias, penalty)
    assert max(abs(down).max(), abs(up).max()) < 3e-5
    logits = np.array(rows) @ found.weights.T + found.bias
    assert found.predict(features.astype(np.float32)).tolist() == logits.argmax(axis=1).tolist()


def test_a_class_without_images_changes_nothing_and_is_never_the_answer() -> None:
    features, labels = problem()
    found = fit_probe(features, labels + 1, CLASSES + 2, PENALTY)
    alone = fit_probe(features, labels, CLASSES, PENALTY)
    assert (found.shares(features)[:, [0, -1]] == 0).all()
    assert (found.shares(features)[:, 1:-1] == alone.shares(features)).all()
    assert (found.predict(features) == alone.predict(features) + 1).all()


def test_a_penalty_must_be_above_zero() -> None:
    features, labels = problem()
    with pytest.raises(ValueError, match="penalty of 0"):
        fit_probe(features, labels, CLASSES, 0)


def test_the_penalty_is_chosen_on_images_that_were_not_fitted() -> None:
    features, labels = problem(60, seed=1)
    chosen_on = np.arange(60) % 4 == 0
    noise = np.random.default_rng(2).normal(size=(60, 40)).astype(np.float32)
    wide = np.concatenate([features, noise], axis=1)
    best, probe = choose_penalty(wide, labels, fitted_N=~chosen_on, chosen_on_N=chosen_on, classes=CLASSES)
    scores = []
    for value in PENALTIES:
        one = fit_probe(wide[~chosen_on], labels[~chosen_on], CLASSES, value)
        shares = np.exp(one.logits(wide[chosen_on]))
        shares /= shares.sum(axis=1, keepdims=True)
        scores.append(
            sum(
                ((row - (np.arange(CLASSES) == label)) ** 2).sum()
                for row, label in zip(shares, labels[chosen_on], strict=True)
            )
            / chosen_on.sum()
        )
    # Noise that is fitted is noise that misleads: the weakest penalty is not the best one.
    assert best.value == PENALTIES[int(np.argmin(scores))] > PENALTIES[-1]
    assert best.brier == pytest.approx(min(scores))
    assert best.accuracy == (probe.predict(wide[chosen_on]) == labels[chosen_on]).mean()
