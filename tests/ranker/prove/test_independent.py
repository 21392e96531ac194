"""The figure of random patches, by a script that shares nothing with prove but the model."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from patchsieve.pipeline.teacher.model import MaskedAutoencoder
from tests.helpers.proofs import GRID, MARKED, PATCH, measured, proof_folder
from tests.helpers.teachers import SMALL, random_teacher

MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def read(path: Path) -> list[tuple[np.ndarray, int]]:
    """Pixels and labels, by the standard library and Pillow."""
    with tarfile.open(path) as archive:
        files = {
            member.name: archive.extractfile(member).read()  # type: ignore[union-attr]
            for member in archive.getmembers()
        }
    stems = sorted({name.split(".")[0] for name in files})
    return [
        (np.asarray(Image.open(io.BytesIO(files[f"{stem}.png"]))), int(files[f"{stem}.cls"]))
        for stem in stems
    ]


def features(picture: np.ndarray, random: np.random.Generator, model: MaskedAutoencoder) -> np.ndarray:
    """What the encoder makes of nine patches drawn at random."""
    rim = (len(picture) - GRID * PATCH) // 2
    chosen = random.choice(GRID**2, MARKED, replace=False)
    patches = []
    for place in chosen:
        top, left = rim + place // GRID * PATCH, rim + place % GRID * PATCH
        block = picture[top : top + PATCH, left : left + PATCH]
        patches.append(((block / 255 - MEAN) / DEVIATION).reshape(-1))
    tokens = model.encode(torch.tensor(np.array(patches))[None].float(), torch.tensor(chosen)[None])[0]
    return torch.cat([tokens[0], tokens[1:].mean(0)]).detach().numpy().astype(float)


def accuracy(
    train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], penalty: float
) -> float:
    """Of a logistic regression, fitted by plain gradient descent."""
    mean, spread = train[0].mean(0), train[0].std(0)
    x, wanted = (train[0] - mean) / spread, np.eye(4)[train[1]]
    weights, bias = np.zeros((x.shape[1], 4)), np.zeros(4)
    for _ in range(3000):
        logits = x @ weights + bias
        share = np.exp(logits - logits.max(1, keepdims=True))
        error = (share / share.sum(1, keepdims=True) - wanted) / len(x)
        weights -= 0.1 * (x.T @ error + penalty * weights)
        bias -= 0.1 * error.sum(0)
    return float((((test[0] - mean) / spread @ weights + bias).argmax(1) == test[1]).mean())


def test_random_patches_are_worth_what_an_independent_script_says(tmp_path: Path) -> None:
    folder = proof_folder(tmp_path, train=80, test=48, in_marked=True)
    proof = measured(folder, selector="topk", controls="random")
    arm = next(arm for arm in proof.arms if arm.arm.name == "random")
    interval = proof.interval(arm, "pruned-pruned")
    assert interval is not None
    model, found = random_teacher(SMALL), []
    # Other draws of patches each time, as prove's are others again.
    for seed in range(3):
        random = np.random.default_rng(seed)
        train, test = (
            (
                np.array([features(picture, random, model) for picture, _ in read(folder / name)]),
                np.array(labels),
            )
            for name in ("train.tar", "test.tar")
            for labels in [[label for _, label in read(folder / name)]]
        )
        found.append(accuracy(train, test, arm.penalty))
    assert interval.low < np.mean(found) < interval.high
