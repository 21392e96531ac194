"""Scores against an independent slow reference, and what must not change them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.images.patches import normalise, visible_count
from patchsieve.pipeline.row_config import Metric, Removal
from patchsieve.pipeline.scoring.cost import gflop_per_view
from patchsieve.pipeline.scoring.scorer import Scorer, reconstruct
from patchsieve.pipeline.teacher.architecture import TeacherConfig
from patchsieve.pipeline.teacher.build import build_teacher
from patchsieve.pipeline.teacher.checkpoint import read_teacher
from patchsieve.pipeline.teacher.model import MaskedAutoencoder
from tests.pipeline.scoring.cases import (
    RATIO,
    REMOVALS,
    SMALL,
    make_teacher,
    make_views,
    reference_scores,
)
from tests.pipeline.scoring.reference import kendall_tau

SHAPES = {
    "2 x 2": (TeacherConfig(image_size=8, patch_size=4, width=16, depth=1, heads=1), 0.5),
    "3 x 3, 5 px": (TeacherConfig(image_size=15, patch_size=5, width=16, depth=2, heads=2), 0.6),
    "5 x 5, 14 px": (TeacherConfig(image_size=70, patch_size=14, width=24, depth=1, heads=3), 0.75),
    "7 x 7, wide perceptron": (TeacherConfig(image_size=28, patch_size=4, width=16, depth=1, heads=4), 0.85),
    "7 x 7, one decoder block": (
        TeacherConfig(image_size=28, patch_size=4, width=16, depth=1, heads=4),
        0.85,
    ),
    "14 x 14, 2 px": (TeacherConfig(image_size=28, patch_size=2, width=16, depth=1, heads=2), 0.97),
    "14 x 14, 16 px": (TeacherConfig(image_size=224, patch_size=16, width=16, depth=1, heads=2), 0.98),
}


@pytest.mark.parametrize("removal", REMOVALS)
@pytest.mark.parametrize("shape", SHAPES)
def test_scores_equal_the_slow_reference(shape: str, removal: Removal) -> None:
    base, ratio = SHAPES[shape]
    config = TeacherConfig(
        **{
            **base.__dict__,
            "decoder_width": 24,
            "decoder_depth": 1 if "one decoder block" in shape else 2,
            "decoder_heads": 3,
            "mlp_ratio": 5.0 if "perceptron" in shape else 4.0,
        }
    )
    model = make_teacher(config)
    images, pixels, visible = make_views(config, 2, visible_count(config.positions, ratio))
    expected = reference_scores(model, images, visible, removal=removal, metric="l1")
    scores = Scorer(model, mask_ratio=ratio, removal=removal, batch_size=2).score(pixels, visible)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("space", ["pixels", "normalised"])
@pytest.mark.parametrize("metric", ["l2", "ssim", "psnr"])
@pytest.mark.parametrize("removal", REMOVALS)
def test_other_metrics_equal_the_slow_reference(removal: Removal, metric: Metric, space: Any) -> None:
    config = TeacherConfig(**{**SMALL.__dict__, "output_space": space})
    model = make_teacher(config)
    images, pixels, visible = make_views(config, 2, 7)
    expected = reference_scores(model, images, visible, removal=removal, metric=metric)
    scorer = Scorer(model, mask_ratio=RATIO, removal=removal, metric=metric, batch_size=2)
    torch.testing.assert_close(scorer.score(pixels, visible), expected, rtol=2e-5, atol=0)


@pytest.mark.parametrize("metric", ["l1", "l2", "ssim", "psnr"])
def test_more_change_scores_higher(metric: Metric) -> None:
    """The metrics agree on the patch that matters most."""
    model = make_teacher()
    _, pixels, visible = make_views(SMALL, 2, 7)
    by_l1 = Scorer(model, mask_ratio=RATIO, batch_size=2).score(pixels, visible)
    scores = Scorer(model, mask_ratio=RATIO, metric=metric, batch_size=2).score(pixels, visible)
    assert torch.equal(scores.argmax(1), by_l1.argmax(1))


def test_scoring_leaves_the_model_alone() -> None:
    model = make_teacher()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    _, pixels, visible = make_views(SMALL, 2, 7)
    Scorer(model, mask_ratio=RATIO, precision="bf16", batch_size=2).score(pixels, visible)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(
        torch.equal(after[name], value) and after[name].dtype == value.dtype for name, value in before.items()
    )


# Few views, since a pass per patch is dear where a processor knows no bf16: the error tells more than the ranks do.
@pytest.mark.parametrize(("removal", "views"), [("decoder", 3), ("encoder", 2)])
def test_half_precision_keeps_the_ranks(removal: Removal, views: int) -> None:
    """On the bundled teacher; small differences of predictions are what bf16 could lose."""
    model = build_teacher(read_teacher("tiny"))
    _, pixels, visible = make_views(model.config, views, 19)
    full, half = (
        Scorer(model, removal=removal, precision=precision, batch_size=views).score(pixels, visible)
        for precision in ("fp32", "bf16")
    )
    # 0.032 of three views, and 0.054 if the decoder's first block is in bf16 too; 0.025 of two.
    assert float((half / full - 1).square().mean().sqrt()) < 0.048
    taus = [kendall_tau(x, y) for x, y in zip(full.tolist(), half.tolist(), strict=True)]
    assert np.mean(taus) >= 0.965, taus


class Watched(MaskedAutoencoder):
    """A teacher that notes the predictions it gives."""

    predictions: list[Tensor]

    def finish_decoding(self, x: Tensor, blocks: Iterable[torch.nn.Module], read: int) -> Tensor:
        result = super().finish_decoding(x, blocks, read)
        Watched.predictions.append(result.clone())
        return result


@pytest.fixture
def predictions() -> Iterator[list[Tensor]]:
    Watched.predictions = []
    yield Watched.predictions
    Watched.predictions = []


def test_exact_removal_does_not_see_the_removed_patch(predictions: list[Tensor]) -> None:
    """Bit for bit: whatever the pixels of patch r are, `f(all \\ r)` is the same."""
    model = make_teacher(kind=Watched)
    _, pixels, visible = make_views(SMALL, 1, 7)
    scorer = Scorer(model, mask_ratio=RATIO, removal="encoder", batch_size=1)
    scorer.score(pixels, visible)
    _, before = (tensor.clone() for tensor in predictions)
    for r in range(7):
        changed = pixels.clone()
        changed[0, int(visible[0, r])] = 255 - changed[0, int(visible[0, r])]
        predictions.clear()
        scorer.score(changed, visible)
        same = [torch.equal(a, b) for a, b in zip(before, predictions[1], strict=True)]
        assert same == [place == r for place in range(7)]


def test_decoder_removal_has_already_seen_the_removed_patch(predictions: list[Tensor]) -> None:
    model = make_teacher(kind=Watched)
    _, pixels, visible = make_views(SMALL, 1, 7)
    scorer = Scorer(model, mask_ratio=RATIO, removal="decoder", batch_size=1)
    scorer.score(pixels, visible)
    before = predictions[1].clone()
    changed = pixels.clone()
    changed[0, int(visible[0, 0])] = 255 - changed[0, int(visible[0, 0])]
    predictions.clear()
    scorer.score(changed, visible)
    assert not torch.equal(before[0], predictions[1][0])


def test_pixels_of_hidden_patches_do_not_matter() -> None:
    model = make_teacher()
    _, pixels, visible = make_views(SMALL, 2, 7)
    scorer = Scorer(model, mask_ratio=RATIO, batch_size=2)
    changed = torch.zeros_like(pixels)
    for row in range(2):
        changed[row, visible[row].long()] = pixels[row, visible[row].long()]
    assert torch.equal(scorer.score(changed, visible), scorer.score(pixels, visible))


@pytest.mark.parametrize("metric", ["l1", "ssim"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("removal", REMOVALS)
def test_scores_of_a_view_do_not_depend_on_how_many_there_are(
    removal: Removal, precision: Any, metric: Metric
) -> None:
    """Bit for bit, at one batch size: the last batch is padded."""
    model = make_teacher()
    _, pixels, visible = make_views(SMALL, 7, 7)
    scorer = Scorer(
        model, mask_ratio=RATIO, removal=removal, precision=precision, metric=metric, batch_size=3
    )
    together = scorer.score(pixels, visible)
    assert together.shape == (7, 7)
    for count in (1, 2, 3, 4, 6):
        assert torch.equal(scorer.score(pixels[:count], visible[:count]), together[:count])
    assert scorer.score(pixels[:0], visible[:0]).shape == (0, 7)


def test_views_may_list_their_patches_in_any_order() -> None:
    model = make_teacher()
    _, pixels, visible = make_views(SMALL, 2, 7)
    scorer = Scorer(model, mask_ratio=RATIO, batch_size=2)
    order = torch.tensor([3, 1, 6, 0, 5, 2, 4])
    torch.testing.assert_close(
        scorer.score(pixels, visible[:, order]), scorer.score(pixels, visible)[:, order], rtol=1e-5, atol=0
    )


def test_anchor_is_the_reconstruction() -> None:
    model = make_teacher()
    _, pixels, visible = make_views(SMALL, 2, 7)
    prediction, hidden = reconstruct(model, pixels, visible)
    assert prediction.shape == (2, 42, 48)
    assert not set(hidden[0].tolist()) & set(visible[0].tolist())
    places = visible.long()
    patches = normalise(torch.stack([pixels[row, places[row]] for row in range(2)]))
    expected = model.decode(model.encode(patches, places), places, hidden, 42)
    assert torch.equal(prediction, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_ratio": 0.98}, "mask ratio 0.98 leaves 0 of 49"),
        ({"mask_ratio": 0.97}, "leaves 1 of 49"),
        ({"mask_ratio": 0.0}, "leaves 49 of 49"),
        ({"metric": "l3"}, "'l3' is none of"),
        ({"removal": "both"}, "'both' is none of"),
        ({"precision": "fp8"}, "'fp8' is none of"),
        ({"precision": "fp16"}, "fp16 needs a GPU"),
        ({"batch_size": 0}, "batch size 0"),
    ],
)
def test_what_cannot_be_done_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Scorer(make_teacher(), **{"mask_ratio": RATIO, "batch_size": 1, **changes})


@pytest.mark.parametrize("metric", ["ssim", "psnr"])
def test_pixel_metrics_need_a_known_output_space(metric: Metric) -> None:
    model = make_teacher(TeacherConfig(**{**SMALL.__dict__, "output_space": "unknown"}))
    Scorer(model, mask_ratio=RATIO, batch_size=1)
    with pytest.raises(UserError, match="does not tell its output space"):
        Scorer(model, mask_ratio=RATIO, metric=metric, batch_size=1)


def test_arguments_that_do_not_fit_the_teacher_are_refused() -> None:
    scorer = Scorer(make_teacher(), mask_ratio=RATIO, batch_size=1)
    _, pixels, visible = make_views(SMALL, 2, 7)
    with pytest.raises(ValueError, match="are not uint8"):
        scorer.score(pixels.float(), visible)
    with pytest.raises(ValueError, match="are not uint8"):
        scorer.score(pixels[:, :48], visible)
    with pytest.raises(ValueError, match="is not"):
        scorer.score(pixels, visible[:, :6])


def test_scores_that_are_no_numbers_are_told_for_their_own_view_alone() -> None:
    _, pixels, visible = make_views(SMALL, 2, 7)
    model = copy.deepcopy(make_teacher())
    # Overflows for the largest pixels only, which the second view does not have.
    pixels[0], pixels[1] = 255, 0
    model.patch_embed.proj.weight[:] = 3e38
    scores = Scorer(model, mask_ratio=RATIO, batch_size=2).score(pixels, visible)
    assert not scores[0].isfinite().all()


def test_nominal_cost() -> None:
    base = TeacherConfig()
    # The blocks of the twenty decoder passes alone: 196 tokens, eight blocks 512 wide.
    decoders = 20 * 2 * 8 * (196 * 12 * 512**2 + 2 * 196**2 * 512) / 1e9
    assert decoders == pytest.approx(209.9, abs=0.1)
    assert gflop_per_view(base, 19, "decoder") == pytest.approx(216.5, abs=0.1)
    # Exact removal pays for the encoder once more per removal.
    encoder = 2 * (12 * (19 * 12 * 768**2 + 2 * 19**2 * 768) + 18 * 768 * 768) / 1e9
    gain = gflop_per_view(base, 19, "encoder") - gflop_per_view(base, 19, "decoder")
    assert gain == pytest.approx(19 * encoder, rel=0.03)
