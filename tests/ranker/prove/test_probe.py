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
    rows: list[list[float]], labels: list[int], weights: np.ndarray, bias: np.ndarray
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
    return down + PENALTY * weights, up


def test_the_classifier_is_that_of_plain_gradient_descent() -> None:
    features, labels = problem()
    rows = standardised(features)
    weights, bias = np.zeros((CLASSES, 4)), np.zeros(CLASSES)
    for _ in range(600):
        down, up = gradient_of_loops(rows, labels.tolist(), weights, bias)
        weights, bias = weights - 2 * down, bias - 2 * up
    found = fit_probe(features, labels, CLASSES, PENALTY)
    assert found.weights == pytest.approx(weights, abs=2e-3)
    assert found.bias == pytest.approx(bias, abs=2e-3)
    logits = np.array(rows) @ weights.T + bias
    assert found.predict(features).tolist() == logits.argmax(axis=1).tolist()


def test_where_it_starts_does_not_matter() -> None:
    features, labels = problem()
    far = fit_probe(features, labels, CLASSES, 1e-3)
    again = fit_probe(features, labels, CLASSES, PENALTY, start=far)
    assert again.weights == pytest.approx(fit_probe(features, labels, CLASSES, PENALTY).weights, abs=2e-3)


def test_a_class_without_images_is_never_the_answer() -> None:
    features, labels = problem()
    found = fit_probe(features, labels, CLASSES + 1, PENALTY)
    assert CLASSES not in found.predict(features)


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
    right = probe.predict(wide[chosen_on]) == labels[chosen_on]
    assert best.accuracy == right.mean()
    others = [fit_probe(wide[~chosen_on], labels[~chosen_on], CLASSES, value) for value in PENALTIES]
    accuracies = [(one.predict(wide[chosen_on]) == labels[chosen_on]).mean() for one in others]
    # Noise that is fitted is noise that misleads: the weakest penalty is not the best one.
    assert best.accuracy == max(accuracies[:3])
    assert best.value == PENALTIES[int(np.argmax(accuracies[:3]))] > PENALTIES[-1]
