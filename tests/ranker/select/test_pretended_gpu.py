"""What prune ranks with, on a pretended GPU: a ranker in every precision, and the baselines."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from patchsieve.pipeline.images.patches import patchify
from patchsieve.pipeline.row_config import Precision
from patchsieve.ranker.baselines.baselines import BASELINES, FROM_TEACHER
from patchsieve.ranker.model import fast
from patchsieve.ranker.select.patch_scorer import (
    PatchScorer,
    PatchSource,
    choose_source_precision,
    open_patch_source,
)
from tests.helpers.evaluations import made_up_fits, ranker_of, small_teacher
from tests.helpers.photos import photo_pixels
from tests.helpers.pretended_gpu.device import Device
from tests.helpers.pretended_gpu.ledger import Crossings
from tests.helpers.pretended_gpu.pretend import pretend_cuda
from tests.helpers.score_runs import save_small_teacher

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
KEYS = ["a", "b"]


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("ranker")
    ranker_of(folder, small_teacher(folder), **made_up_fits())
    return str(folder)


def images(source: PatchSource) -> list[torch.Tensor]:
    side = source.image_size
    photos = torch.stack([torch.from_numpy(photo_pixels(seed, side, side)) for seed in range(len(KEYS))])
    return list(patchify(photos.permute(0, 3, 1, 2), source.patch_size))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_ranker_ranks_as_on_a_processor(gpu: Device, ranker: str, precision: Precision) -> None:
    source = dataclasses.replace(
        open_patch_source(ranker, fits=None, teacher=None, seed=0), precision=precision
    )
    patches = images(source)
    on_processor = PatchScorer(dataclasses.replace(source, precision="fp32"), device=CPU, batch_size=2)
    expected = on_processor.score(patches, KEYS)
    scorer = PatchScorer(source, device=CUDA, batch_size=2)
    scorer.score(patches, KEYS)
    gpu.forget()
    found = scorer.score(patches, KEYS)
    assert gpu.ledger.crossings() == Crossings(uploads=1, downloads=1, waits=1)
    tolerance = {"fp32": 1e-3, "fp16": 0.02, "bf16": 0.1}[precision]
    np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())


def test_precision_and_batch_are_measured(ranker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "_PROBE_S", 0.1)
    source = open_patch_source(ranker, fits=None, teacher=None, seed=0)
    with pretend_cuda(values=False):
        source = dataclasses.replace(source, precision=choose_source_precision(source, CUDA))
        assert source.precision in {"fp32", "bf16", "fp16"}
        assert PatchScorer(source, device=CUDA, batch_size="auto").batch_size >= 1


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_rank_as_on_a_processor(gpu: Device, ranker: str, tmp_path: Path, name: str) -> None:
    source = open_patch_source(
        f"baseline:{name}",
        fits=ranker if name in ("position", "ridge") else None,
        teacher=save_small_teacher(tmp_path) if name in FROM_TEACHER else None,
        seed=0,
    )
    found, expected = (
        PatchScorer(source, device=device, batch_size=2).score(images(source), KEYS) for device in (CUDA, CPU)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
