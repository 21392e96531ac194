"""The code of the README and of the recipes runs as it stands there, on data and a model that are small."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from patchsieve.ranker.model.checkpoint import save_ranker
from tests.helpers.checkout import ROOT
from tests.helpers.pages import python_blocks
from tests.helpers.photos import encode, photo_samples, write_shard
from tests.helpers.prune_runs import prune_config, prune_here
from tests.helpers.rankers import TEACHER, small_ranker
from tests.helpers.score_runs import save_small_teacher, score_config, score_here

COLOURS = ((220, 30, 30), (30, 30, 220))


def code_with(words: str) -> str:
    """The indented block of the README that holds these words."""
    (found,) = [block for block in python_blocks(ROOT / "README.md") if words in block]
    return found


def coloured(folder: Path, name: str, count: int) -> None:
    """Photos of two classes that a look at any patch tells apart, pruned."""
    random = np.random.default_rng(count)
    samples = []
    for number in range(count):
        noise = random.normal(COLOURS[number % 2], 12, (64, 64, 3))
        picture = encode(np.clip(noise, 0, 255).astype(np.uint8))
        samples.append((f"{name}-{number:03d}", {"jpg": picture, "cls": str(number % 2).encode()}))
    shard = write_shard(folder / "photos" / f"{name}.tar", samples)
    prune_here(prune_config([shard], folder / "pruned" / name, "baseline:variance", keep=0.05))


def test_from_labels_to_accuracy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    coloured(tmp_path, "train", 16)
    coloured(tmp_path, "test", 8)
    monkeypatch.chdir(tmp_path)
    whole: Any = timm.create_model
    small = {"embed_dim": 32, "depth": 1, "num_heads": 2, "pos_embed_grid_size": (14, 14)}
    monkeypatch.setattr(timm, "create_model", lambda name, **options: whole(name, **options, **small))
    code = code_with("collate_naflex, fields=")
    assert 15 <= sum(bool(line.strip()) for line in code.splitlines()) <= 22, "twenty lines"
    torch.manual_seed(0)
    exec(code.replace("num_workers=2", "num_workers=0"), {})
    assert re.fullmatch(r"accuracy [01]\.\d{3}\n", said := capsys.readouterr().out)
    assert float(said.split()[1]) >= 0.5


def test_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the page, but for blocks of libraries that are not here."""
    shard = write_shard(tmp_path / "photos" / "a.tar", photo_samples(2, height=60, width=80))
    score_here(score_config([shard], tmp_path / "tables", save_small_teacher(tmp_path), mask_ratio=0.75))
    save_ranker(
        str(tmp_path / "ranker"), small_ranker(head="token"), teacher=TEACHER, tables=[], temperature=1.0
    )
    prune_here(prune_config([shard], tmp_path / "pruned", "baseline:variance"))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    ran = 0
    for block in python_blocks(ROOT / "docs" / "recipes.md"):
        needed = re.findall(r"\b(datasets|polars|duckdb)\b", block.partition("\n")[0])
        if all(importlib.util.find_spec(name) for name in needed):
            exec(block.replace("scores, 196)", "scores, 36)"), names)
            ran += 1
    assert ran >= 3
    assert np.isfinite(names["dense"]).sum() == len({place for seen in names["visible"] for place in seen})
    assert tuple(names["images"]) == (3, 64, 64)
    # All patches at their places are the picture.
    vit, picture = names["vit"].eval(), torch.randn(1, 3, 224, 224)
    patches = picture.unfold(2, 16, 16).unfold(3, 16, 16).permute(0, 2, 3, 4, 5, 1).reshape(1, 196, -1)
    order = torch.randperm(196)
    shuffled = {"patches": patches[:, order], "positions": order[None]}
    assert torch.allclose(names["logits_of"](vit, shuffled), vit(picture), atol=1e-5)
