"""Targets of the losses: what each transform keeps of the pseudo-scores, view by view."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest
import torch

from patchsieve.pipeline.errors import UserError
from patchsieve.ranker.learning.losses import list_mle
from patchsieve.ranker.learning.targets import default_target, transform


def pseudo_scores() -> torch.Tensor:
    """Scores like a teacher's: near 0.01, positive, float32 `[5, 19]`."""
    noise = torch.randn(5, 19, generator=torch.Generator().manual_seed(0))
    return 0.01 * (0.4 * noise).exp()


def test_raw_is_the_scores() -> None:
    assert torch.equal(transform(pseudo_scores(), "raw"), pseudo_scores())


def test_standardised_per_view() -> None:
    scores = pseudo_scores()
    targets = transform(scores, "standardised")
    for row, given in zip(targets.tolist(), scores.tolist(), strict=True):
        mean, deviation = statistics.fmean(given), statistics.pstdev(given)
        assert row == pytest.approx([(value - mean) / deviation for value in given], rel=1e-5, abs=1e-6)


def test_log_is_over_the_geometric_mean() -> None:
    scores = pseudo_scores()
    for row, given in zip(transform(scores, "log").tolist(), scores.tolist(), strict=True):
        middle = statistics.geometric_mean(given)
        assert row == pytest.approx([math.log(value / middle) for value in given], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("how", ["raw", "standardised", "log"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_every_transform_keeps_the_order(how: Any, dtype: torch.dtype) -> None:
    scores = pseudo_scores().to(dtype)
    targets = transform(scores, how)
    assert targets.dtype == torch.float32
    ranker = torch.randn(5, 19, generator=torch.Generator().manual_seed(1))
    assert list_mle(ranker, targets) == list_mle(ranker, scores)


@pytest.mark.parametrize("how", ["standardised", "log"])
def test_views_do_not_depend_on_each_other(how: Any) -> None:
    scores = pseudo_scores()
    alone = torch.cat([transform(row[None], how) for row in scores])
    assert torch.equal(alone, transform(scores, how))


@pytest.mark.parametrize("how", ["standardised", "log"])
def test_scale_of_a_teacher_does_not_matter(how: Any) -> None:
    scores = pseudo_scores()
    torch.testing.assert_close(transform(scores * 4096, how), transform(scores, how))


def test_psnr_scores_are_standardised() -> None:
    scores = -40 + pseudo_scores()
    assert transform(scores, "standardised").std(1, correction=0) == pytest.approx([1.0] * 5, rel=1e-5)
    with pytest.raises(UserError, match="target log needs scores of at least 0, the table holds -39"):
        transform(scores, "log")


@pytest.mark.parametrize("how", ["standardised", "log"])
@pytest.mark.parametrize("value", [0.0, 0.01, 1e-30, 1e4])
def test_equal_scores_give_zeros(how: Any, value: float) -> None:
    assert torch.equal(transform(torch.full((2, 19), value), how), torch.zeros(2, 19))


def test_last_digits_are_told_apart() -> None:
    step = torch.finfo(torch.float32).eps
    targets = transform(torch.tensor([[1.0, 1.0 + step, 1.0, 1.0 + step]]), "standardised")
    assert targets.tolist() == [[-1.0, 1.0, -1.0, 1.0]]


def test_zero_counts_as_the_smallest_positive_score_of_its_view() -> None:
    targets = transform(torch.tensor([[0.0, 0.1, 0.4], [0.0, 2.0, 2.0]]), "log")
    torch.testing.assert_close(targets, transform(torch.tensor([[0.1, 0.1, 0.4], [2.0, 2.0, 2.0]]), "log"))


def test_defaults() -> None:
    assert default_target("list_mle") == default_target("list_mle_sub") == "raw"
    for loss in ("list_net", "rank_net", "mse", "focused"):
        assert default_target(loss) == "standardised"


def test_unknown_target_is_refused() -> None:
    with pytest.raises(UserError, match="target is 'logs', must be one of raw, standardised, log"):
        transform(pseudo_scores(), "logs")
