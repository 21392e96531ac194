"""The README's code runs as it stands there, on data and a model that are small."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from tests.helpers.checkout import ROOT
from tests.helpers.photos import encode, write_shard
from tests.helpers.prune_runs import prune_config, prune_here

COLOURS = ((220, 30, 30), (30, 30, 220))


def code_with(words: str) -> str:
    """The indented block of the README that holds these words."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?:^(?:    .*)?\n)+", text, re.MULTILINE)
    (found,) = [block for block in blocks if words in block]
    return textwrap.dedent(found)


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
