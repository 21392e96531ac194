"""Made-up labelled shards in which it is known what a selector is worth, and a ranker that finds a mark in them.

Pictures are 36 patches of 8 px. Nine of them, at random places, carry a mark, a fine checkerboard that the ranker looks
for. Stripes of one pixel vanish when a picture is halved.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from patchsieve.ranker.model.checkpoint import save_ranker
from patchsieve.ranker.model.ranker import Ranker
from patchsieve.ranker.prove.config import ProveConfig
from patchsieve.ranker.prove.probe import PENALTIES, choose_penalty
from patchsieve.ranker.prove.report import Proof
from patchsieve.ranker.prove.run import Hire, alone, prove
from tests.helpers.evaluations import made_up_fits, model_for_teacher, small_teacher
from tests.helpers.photos import Pixels, encode, write_shard
from tests.helpers.teachers import SMALL

GRID, PATCH = SMALL.grid, SMALL.patch_size
MARKED = 9
NAMES = ("cat", "dog", "owl", "yak")
# Of 55 px, the central crop are the middle 48, pixel by pixel.
_SIDE, _RIM = 55, 3
_ROW, _COLUMN = np.mgrid[0:PATCH, 0:PATCH]
_CHECKER = (-1.0) ** (_ROW + _COLUMN)


def marked_picture(label: int, seed: int, *, in_marked: bool) -> Pixels:
    """A picture of one of four labels, which lies in the marked patches alone or in all others alone."""
    random = np.random.default_rng(seed)
    marked = set(random.permutation(GRID**2)[:MARKED].tolist())
    stripes = [1.0, -1.0][label % 2] * (-1.0) ** (_ROW if label < 2 else _COLUMN)
    tint = np.array([(25, 0, 0), (0, 25, 0), (0, 0, 25), (0, 0, 0)][label])
    canvas = np.full((_SIDE, _SIDE, 3), 128.0)
    for place in range(GRID**2):
        noise = random.normal(0, 70, (PATCH, PATCH, 3))
        # Whole 2 x 2 blocks less their mean: nothing of the noise is left when the picture is halved.
        noise -= noise.reshape(4, 2, 4, 2, 3).mean((1, 3)).repeat(2, 0).repeat(2, 1)
        if place in marked:
            patch = 30 * _CHECKER[..., None] + (25 * stripes[..., None] if in_marked else 0)
        else:
            patch = noise + (0 if in_marked else tint)
        top, left = (_RIM + PATCH * number for number in divmod(place, GRID))
        canvas[top : top + PATCH, left : left + PATCH] += patch
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def marked_shard(path: Path, count: int, seed: int, *, in_marked: bool) -> Path:
    """A shard of such pictures, with their labels as `cls` and as the key `kind` of `json`."""
    samples = []
    for number in range(count):
        label = number % 4
        pixels = marked_picture(label, seed * 10_000 + number, in_marked=in_marked)
        about = json.dumps({"kind": NAMES[label]}).encode()
        fields = {"png": encode(pixels, "PNG"), "cls": str(label).encode(), "json": about}
        samples.append((f"{path.stem}-{number:04d}", fields))
    return write_shard(path, samples)


def mark_finder() -> Ranker:
    """A ranker whose blocks do nothing and whose head reads how much of the mark a patch holds."""
    ranker = model_for_teacher(depth=1, head="token")
    with torch.no_grad():
        for parameter in ranker.parameters():
            parameter.zero_()
        backbone: Any = ranker.backbone
        backbone.norm.weight.fill_(1)
        mark = torch.from_numpy(_CHECKER).float().expand(3, PATCH, PATCH)
        backbone.patch_embed.proj.weight[0] = 30 * mark / mark.numel()
        ranker.head.weight[0, 0] = 1
    return ranker.eval()


def proof_folder(folder: Path, *, train: int, test: int, in_marked: bool) -> Path:
    """`train.tar`, `test.tar`, a teacher of random weights and the ranker that finds the mark."""
    marked_shard(folder / "train.tar", train, 1, in_marked=in_marked)
    marked_shard(folder / "test.tar", test, 2, in_marked=in_marked)
    teacher = small_teacher(folder)
    about = {"name": "small", "digest": teacher.file.digest, "grid": GRID, "patch_size": PATCH}
    save_ranker(
        str(folder / "ranker"),
        mark_finder(),
        teacher=about,
        tables=("t",),
        temperature=1.0,
        extra=made_up_fits(),
    )
    return folder


@pytest.fixture
def one_penalty(monkeypatch: pytest.MonkeyPatch) -> None:
    """For measurements whose figures do not matter: a fit in place of three to nine."""
    monkeypatch.setitem(choose_penalty.__kwdefaults__, "penalties", PENALTIES[:1])


def proof_config(folder: Path, **changes: Any) -> ProveConfig:
    """A small measurement of a `proof_folder`, at a quarter of the patches."""
    settings: dict[str, Any] = {
        "shards": (str(folder / "train.tar"),),
        "test": (str(folder / "test.tar"),),
        "out": str(folder / "out"),
        "ranker": str(folder / "ranker"),
        "teacher": str(folder / "small-pixels-0.safetensors"),
        "keep": "0.25",
        "plot": False,
    }
    return ProveConfig(**{**settings, **changes})


def measured(
    folder: Path, say: Callable[[str], None] = lambda line: None, *, hire: Hire = alone, **changes: Any
) -> Proof:
    """That measurement, done."""
    return prove(proof_config(folder, **changes), say, run_id="run", hire=hire)
