"""The accuracy of random patches, by a script that shares nothing with prove but the model."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from patchsieve.pipeline.teacher.model import MaskedAutoencoder
from tests.helpers.proofs import GRID, MARKED, PATCH
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


def features(pictures: list[np.ndarray], random: np.random.Generator, model: MaskedAutoencoder) -> np.ndarray:
    """What the encoder makes of nine patches of each, drawn at random."""
    rim = (len(pictures[0]) - GRID * PATCH) // 2
    patches, places = [], []
    for picture in pictures:
        chosen = random.choice(GRID**2, MARKED, replace=False)
        places.append(chosen)
        for place in chosen:
            top, left = rim + place // GRID * PATCH, rim + place % GRID * PATCH
            block = picture[top : top + PATCH, left : left + PATCH]
            patches.append(((block / 255 - MEAN) / DEVIATION).reshape(-1))
    shown = torch.tensor(np.array(patches)).float().reshape(len(pictures), MARKED, -1)
    tokens = model.encode(shown, torch.tensor(np.array(places)))
    return torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], dim=1).detach().numpy().astype(float)


def fitted_accuracy(
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


def accuracy_of_random_patches(folder: Path, seed: int, penalty: float) -> float:
    """On the shards of a `proof_folder`."""
    random, model = np.random.default_rng(seed), random_teacher(SMALL)
    train, test = (
        (features(list(pictures), random, model), np.array(labels))
        for name in ("train.tar", "test.tar")
        for pictures, labels in [zip(*read(folder / name), strict=True)]
    )
    return fitted_accuracy(train, test, penalty)
