"""Reconstructions without one patch, where removals share the decoder's first block."""

from __future__ import annotations

import copy

import pytest
import torch

from patchsieve.pipeline.images.patches import hidden_positions, normalise, take_patches
from patchsieve.pipeline.scoring.removals import TokenRemovals
from patchsieve.pipeline.scoring.scorer import Scorer
from patchsieve.pipeline.teacher.ready import prepare_teacher
from tests.pipeline.scoring.cases import RATIO, SMALL, make_teacher, make_views, reference_scores


@pytest.mark.parametrize("sharper", [1.0, 8.0, 40.0])
def test_a_patch_that_has_all_of_the_attention_can_be_removed(sharper: float) -> None:
    """Logits of thousands: subtracting the patch's share from a finished softmax would leave nothing, or 0 / 0."""
    model = copy.deepcopy(make_teacher())
    with torch.no_grad():
        weight = model.decoder_blocks[0].get_submodule("attn.qkv").weight
        assert isinstance(weight, torch.Tensor)
        weight[: 2 * SMALL.decoder_width] *= sharper
    images, pixels, visible = make_views(SMALL, 2, 7)
    expected = reference_scores(model, images, visible, removal="decoder", metric="l1")
    scores = Scorer(model, mask_ratio=RATIO, batch_size=2).score(pixels, visible)
    torch.testing.assert_close(scores, expected, rtol=2e-5 * sharper, atol=0)


def test_any_choice_of_removals_gives_the_same() -> None:
    model = prepare_teacher(make_teacher(), "fp32", torch.device("cpu"))
    _, pixels, visible = make_views(SMALL, 3, 7)
    visible = visible.long()
    with torch.inference_mode():
        latent = model.encode(normalise(take_patches(pixels, visible)), visible)
        hidden = hidden_positions(visible, SMALL.positions)
        without = TokenRemovals(model, 7).of(latent, pixels, visible, hidden)
        every, some = without(torch.arange(7)), without(torch.tensor([5, 0]))
    torch.testing.assert_close(some, every[:, [5, 0]], rtol=1e-5, atol=1e-6)


def test_a_first_block_in_half_precision_as_on_gpus() -> None:
    model = prepare_teacher(make_teacher(), "bf16", torch.device("cpu"))
    model.decoder_blocks[0] = model.decoder_blocks[1]
    _, pixels, visible = make_views(SMALL, 2, 7)
    visible = visible.long()
    hidden = hidden_positions(visible, SMALL.positions)
    with torch.inference_mode():
        latent = model.encode(normalise(take_patches(pixels, visible)), visible)
        found = TokenRemovals(model, 7).of(latent, pixels, visible, hidden)(torch.arange(7))
        others = torch.arange(1, 7)
        expected = model.decode(
            torch.cat([latent[:, :1], latent[:, 1 + others]], dim=1),
            visible[:, others],
            hidden,
            hidden.shape[1],
        )
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[:, 0], expected.float(), rtol=0.05, atol=0.05)
