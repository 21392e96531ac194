"""A ranker made ready to rank: the same scores, or the same order in half precision, however many at once."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from skimage import data
from torch import Tensor

import patchsieve
from patchsieve.pipeline.errors import UserError
from patchsieve.ranker.model import fast
from patchsieve.ranker.model.api import center_patches
from patchsieve.ranker.model.fast import choose_ranker_precision, prepare_ranker
from patchsieve.ranker.model.ranker import Ranker, RankerConfig
from patchsieve.ranker.select.patch_scorer import PatchScorer, open_patch_source
from tests.helpers.rankers import small_ranker
from tests.pipeline.scoring.reference import kendall_tau

CPU = torch.device("cpu")
PHOTOS = ("astronaut", "chelsea", "coffee", "rocket")


def photo_patches(config: RankerConfig) -> Tensor:
    photos = [torch.from_numpy(getattr(data, name)().copy()).permute(2, 0, 1) for name in PHOTOS]
    return torch.stack([center_patches(photo, config) for photo in photos])


def noise(ranker: Ranker, count: int) -> Tensor:
    shape = (count, ranker.config.positions, ranker.config.patch_values)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("head", ["cls", "token"])
def test_scores_are_those_of_the_ranker(head: str) -> None:
    ranker = small_ranker(head=head)
    images = noise(ranker, 3)
    with torch.inference_mode():
        expected = ranker.forward_image(images)
        found = prepare_ranker(ranker, "fp32", CPU).forward_image(images)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(ranker.forward_image(images), expected), "the ranker itself was changed"


def test_other_transformers_rank_alike() -> None:
    # Layer scale, registers, and a GELU that is not oneDNN's.
    for name in ("vit_small_patch14_reg4_dinov2", "vit_tiny_patch16_224"):
        ranker = Ranker(RankerConfig(model=name, image_size=64, patch_size=16, depth=1, head="token")).eval()
        for block in ranker.backbone.blocks:
            block.get_submodule("mlp").act = torch.nn.GELU(approximate="tanh")
        images = noise(ranker, 2)
        with torch.inference_mode():
            found = prepare_ranker(ranker, "fp32", CPU).forward_image(images)
            torch.testing.assert_close(found, ranker.forward_image(images), rtol=1e-4, atol=1e-5)


def test_half_precision_keeps_the_order() -> None:
    ranker = patchsieve.load_ranker("tiny", device="cpu").model
    images = photo_patches(ranker.config)
    with torch.inference_mode():
        expected = ranker.forward_image(images)
        found = prepare_ranker(ranker, "bf16", CPU).forward_image(images)
    assert found.dtype == torch.float32
    assert not torch.equal(found, expected), "nothing was computed in half precision"
    taus = [kendall_tau(a, b) for a, b in zip(found.tolist(), expected.tolist(), strict=True)]
    assert min(taus) > 0.97, taus


def test_precision_and_batch_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "_PROBE_S", 0.1)
    ranker = small_ranker()
    assert choose_ranker_precision(ranker, CPU) in {"fp32", "bf16"}
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        prepare_ranker(ranker, "fp16", CPU)
    source = open_patch_source("tiny", fits=None, teacher=None, seed=0)
    assert source.needs_precision
    source = dataclasses.replace(source, precision="fp32")
    images = list(photo_patches(patchsieve.load_ranker("tiny").config))
    measured = PatchScorer(source, device=CPU, batch_size="auto")
    assert measured.batch_size in {1, 2, 4, 8, 16, 32}
    one, four = PatchScorer(source, device=CPU, batch_size=1), PatchScorer(source, device=CPU, batch_size=4)
    alone = np.concatenate([one.score([image], ["key"]) for image in images])
    np.testing.assert_allclose(four.score(images, list(PHOTOS)), alone, rtol=1e-4, atol=1e-5)
