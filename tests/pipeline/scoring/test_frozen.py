"""The frozen estimator against its slow definition and against exact scores, and what must not change its draws."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.row_config import FrozenTokens, Metric
from patchsieve.pipeline.scoring.api import load_teacher, score_images
from patchsieve.pipeline.scoring.cost import gflop_per_view
from patchsieve.pipeline.scoring.frozen import draw_starts, draw_tokens
from patchsieve.pipeline.scoring.scorer import Scorer
from patchsieve.pipeline.teacher.architecture import TeacherConfig
from patchsieve.pipeline.teacher.build import build_teacher
from patchsieve.pipeline.teacher.checkpoint import read_teacher
from tests.helpers.photos import encode, photo_pixels, write_shard
from tests.helpers.score_runs import rows_of, save_small_teacher, score_config, score_here
from tests.helpers.tables import CONFIG
from tests.pipeline.scoring.cases import RATIO, SMALL, make_teacher, make_views
from tests.pipeline.scoring.reference import kendall_tau
from tests.pipeline.scoring.reference_frozen import FrozenReference, probabilities

ROWS = dataclasses.replace(CONFIG, estimator="frozen", frozen_tokens=8)
HIDDEN = 42


def starts_of(count: int, visible: int = 7) -> Tensor:
    starts = draw_starts(ROWS, [(f"photo-{row}", row) for row in range(count)], visible)
    assert starts is not None
    return starts


@pytest.mark.parametrize(("tokens", "depth"), [(1, 3), (8, 3), (20, 3), (41, 3), ("all", 3), (8, 2), (8, 1)])
def test_scores_equal_the_slow_definition(tokens: FrozenTokens, depth: int) -> None:
    config = dataclasses.replace(SMALL, decoder_depth=depth)
    model = make_teacher(config)
    images, pixels, visible = make_views(config, 2, 7)
    starts = starts_of(2)
    slow = FrozenReference(
        model.state_dict(),
        patch_size=config.patch_size,
        heads=config.heads,
        decoder_heads=config.decoder_heads,
    )
    count = HIDDEN if tokens == "all" else tokens
    expected = [
        slow.frozen_scores(image, shown.tolist(), start.tolist(), count)
        for image, shown, start in zip(images, visible, starts, strict=True)
    ]
    metrics: list[Metric] = ["l1", "l2"]
    for metric in metrics:
        scorer = Scorer(model, mask_ratio=RATIO, metric=metric, batch_size=2, frozen_tokens=tokens)
        scores = scorer.score(pixels, visible, starts)
        assert scores.dtype == torch.float32
        wanted = torch.tensor([one[metric] for one in expected])
        torch.testing.assert_close(scores.double(), wanted.double(), rtol=3e-5, atol=0)


@pytest.mark.parametrize("metric", ["l1", "l2"])
def test_all_tokens_give_exact_scores(metric: Metric) -> None:
    model = build_teacher(read_teacher("tiny"))
    _, pixels, visible = make_views(model.config, 1, 19)
    exact = Scorer(model, metric=metric, batch_size=1).score(pixels, visible)
    frozen = Scorer(model, metric=metric, batch_size=1, frozen_tokens="all")
    torch.testing.assert_close(frozen.score(pixels, visible, starts_of(1, 19)), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("count", [1, 5, 20, 41])
def test_weighted_sums_are_unbiased(count: int) -> None:
    """Over a fine comb of random numbers the mean of the weighted sums is the sum, for any values."""
    generator = torch.Generator().manual_seed(count)
    proxy = torch.rand(HIDDEN, generator=generator) ** 3 + 0.01
    values = torch.rand(HIDDEN, generator=generator).double()
    combs = 20_000
    starts = (torch.arange(combs).double() + 0.5) / combs
    chosen, weight, rest = draw_tokens(proxy.expand(combs, -1), starts, count)
    sums = (values[chosen] * weight).sum(1)
    assert float(sums.mean()) == pytest.approx(float(values.sum()), rel=1e-3)
    everyone = torch.cat([chosen, rest], dim=1).sort(1).values
    assert torch.equal(everyone, torch.arange(HIDDEN).expand(combs, -1))
    shares = torch.zeros(HIDDEN).index_add_(0, chosen.flatten(), torch.ones(chosen.numel())) / combs
    expected = torch.tensor(probabilities(proxy.double().tolist(), count))
    torch.testing.assert_close(shares, expected.float(), rtol=0, atol=2 / combs)


def test_proxies_without_any_order_draw_all_alike() -> None:
    starts = torch.arange(100).double() / 100
    for proxy in (torch.zeros(10), torch.full((10,), 1e-30), torch.full((10,), 3e38)):
        chosen, weight, _ = draw_tokens(proxy.expand(100, -1), starts, 3)
        assert len(chosen.unique()) == 10
        torch.testing.assert_close(weight, torch.full((100, 3), 10 / 3))


def test_draws_depend_on_the_view_and_the_seed_alone() -> None:
    keys = [("a", 0), ("a", 1), ("b", 0)]
    starts = draw_starts(ROWS, keys, 19)
    assert starts is not None
    assert len(starts.unique()) == 3 * 19
    assert ((starts >= 0) & (starts < 1)).all()
    alone = draw_starts(ROWS, keys[1:2], 19)
    assert alone is not None
    assert torch.equal(alone[0], starts[1])
    other = draw_starts(dataclasses.replace(ROWS, seed=1), keys, 19)
    assert other is not None
    assert not torch.equal(other, starts)
    assert draw_starts(CONFIG, keys, 19) is None


def test_scores_of_a_view_depend_neither_on_the_others_nor_on_their_order() -> None:
    model = make_teacher()
    _, pixels, visible = make_views(SMALL, 7, 7)
    starts = starts_of(7)
    scorer = Scorer(model, mask_ratio=RATIO, batch_size=3, frozen_tokens=8)
    together = scorer.score(pixels, visible, starts)
    for count in (1, 3, 4):
        assert torch.equal(scorer.score(pixels[:count], visible[:count], starts[:count]), together[:count])
    order = torch.tensor([4, 2, 6, 0, 1, 5, 3])
    shuffled = scorer.score(pixels[order], visible[order], starts[order])
    torch.testing.assert_close(shuffled, together[order], rtol=1e-5, atol=0)
    for batch_size in (1, 7):
        other = Scorer(model, mask_ratio=RATIO, batch_size=batch_size, frozen_tokens=8)
        torch.testing.assert_close(other.score(pixels, visible, starts), together, rtol=1e-5, atol=0)


def test_other_random_numbers_give_other_estimates_of_the_same() -> None:
    model = build_teacher(read_teacher("tiny"))
    _, pixels, visible = make_views(model.config, 1, 19)
    exact = Scorer(model, batch_size=1).score(pixels, visible)
    scorer = Scorer(model, batch_size=1, frozen_tokens=16)
    draws = [draw_starts(ROWS, [("a", draw)], 19) for draw in range(6)]
    estimates = torch.stack([scorer.score(pixels, visible, draw) for draw in draws])
    assert not torch.equal(estimates[0], estimates[1])
    one = float((estimates / exact - 1).abs().mean())
    mean = float((estimates.mean(0) / exact - 1).abs().mean())
    # What remains is the staleness of the frozen tokens.
    assert 0.01 < mean < 0.9 * one < 0.2


def test_half_precision_keeps_the_ranks() -> None:
    """The draws hang on proxies, which half precision changes a little: some tokens are others."""
    model = build_teacher(read_teacher("tiny"))
    _, pixels, visible = make_views(model.config, 2, 19)
    starts = starts_of(2, 19)
    full, half = (
        Scorer(model, precision=precision, batch_size=2, frozen_tokens=59).score(pixels, visible, starts)
        for precision in ("fp32", "bf16")
    )
    taus = [kendall_tau(x, y) for x, y in zip(full.tolist(), half.tolist(), strict=True)]
    assert np.mean(taus) >= 0.95, taus


def test_a_table_holds_what_python_gives(tmp_path: Path) -> None:
    """Each view by its own random numbers, whatever is in its batch."""
    pixels = [photo_pixels(number, 60, 80) for number in range(3)]
    samples = [(f"k{number}", {"png": encode(photo, "PNG")}) for number, photo in enumerate(pixels)]
    shard = write_shard(tmp_path / "a.tar", samples)
    path = save_small_teacher(tmp_path)
    settings: dict[str, Any] = {"estimator": "frozen", "frozen_tokens": 6, "metric": "l2", "seed": 3}
    score_here(score_config([shard], tmp_path / "out", path, views="3", crop="center", **settings))
    rows = rows_of(tmp_path / "out")
    teacher = load_teacher(path, device="cpu", precision="fp32")
    results = score_images(pixels, teacher, keys=["k0", "k1", "k2"], views=3, **settings)
    exact = score_images(pixels, teacher, keys=["k0", "k1", "k2"], views=3, metric="l2", seed=3)
    for number, result in enumerate(results):
        assert (result.visible == exact[number].visible).all()
        assert (result.score != exact[number].score).all()
        for view in range(3):
            row = rows[str(shard), f"k{number}", view]
            assert row["score"] == pytest.approx(result.score[view].tolist(), rel=1e-5, abs=0)


def test_random_numbers_go_with_the_estimator() -> None:
    _, pixels, visible = make_views(SMALL, 2, 7)
    with pytest.raises(ValueError, match="random numbers"):
        Scorer(make_teacher(), mask_ratio=RATIO, batch_size=1, frozen_tokens=8).score(pixels, visible)
    with pytest.raises(ValueError, match="random numbers"):
        Scorer(make_teacher(), mask_ratio=RATIO, batch_size=1).score(pixels, visible, starts_of(2))


def test_more_tokens_than_are_hidden_are_refused() -> None:
    with pytest.raises(UserError, match="43 frozen tokens, but a view of this teacher hides 42 patches"):
        Scorer(make_teacher(), mask_ratio=RATIO, batch_size=1, frozen_tokens=43)
    with pytest.raises(UserError, match="estimator frozen takes removal decoder"):
        Scorer(make_teacher(), mask_ratio=RATIO, removal="encoder", batch_size=1, frozen_tokens=8)


def test_nominal_cost() -> None:
    base = TeacherConfig()
    exact = gflop_per_view(base, 19, "decoder")
    # 19 passes of 19 + 30 tokens through eight blocks 512 wide, each attending to 196.
    removals = 19 * 2 * 8 * (49 * 12 * 512**2 + 2 * 49 * 196 * 512) / 1e9
    anchor = exact / 20 + 4
    assert gflop_per_view(base, 19, "decoder", 30) == pytest.approx(removals + anchor, rel=0.03)
    assert gflop_per_view(base, 19, "decoder", "all") == gflop_per_view(base, 19, "decoder", 177)
    assert gflop_per_view(base, 19, "decoder", "all") == pytest.approx(exact, rel=0.02)
