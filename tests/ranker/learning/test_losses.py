"""Ranking losses against plain loops, their gradients, and what must not change them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from patchsieve.pipeline.errors import UserError
from patchsieve.ranker.learning import losses
from patchsieve.ranker.learning.losses import make_loss
from tests.ranker.learning import reference_losses as reference

VIEWS, PATCHES = 4, 19

# Name, options, and the loops that say what it should be.
CASES: list[tuple[str, dict[str, Any], Any]] = [
    ("list_mle", {}, reference.list_mle),
    ("list_net", {}, reference.list_net),
    ("rank_net", {}, reference.rank_net),
    ("rank_net", {"threshold": 0.3, "sigma": 2.5}, reference.rank_net),
    ("mse", {}, reference.mse),
    ("focused", {}, reference.focused),
    ("focused", {"k": 3, "threshold": 0.3, "sigma": 0.5}, reference.focused),
]
NAMES = ["list_mle", "list_net", "rank_net", "mse", "focused"]
case = pytest.mark.parametrize(("name", "options", "expected"), CASES)


def draw(seed: int, *, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Scores and targets; some targets of every view are equal."""
    generator = torch.Generator().manual_seed(seed)
    scores = scale * torch.randn(VIEWS, PATCHES, generator=generator, dtype=torch.float64)
    targets = torch.randn(VIEWS, PATCHES, generator=generator, dtype=torch.float64)
    targets[:, 5:9] = targets[:, :4]
    return scores.to(dtype), targets.to(dtype)


def gradient(loss: losses.Loss, scores: Tensor, targets: Tensor) -> Tensor:
    leaf = scores.clone().requires_grad_()
    loss(leaf, targets).backward()
    assert leaf.grad is not None
    return leaf.grad


@case
def test_equals_the_loops(name: Any, options: dict[str, Any], expected: Any) -> None:
    scores, targets = draw(1)
    value = make_loss(name, **options)(scores, targets)
    assert value.shape == ()
    assert value.item() == pytest.approx(expected(scores.tolist(), targets.tolist(), **options), rel=1e-12)


@case
def test_gradient(name: Any, options: dict[str, Any], expected: Any) -> None:
    del expected
    scores, targets = draw(2)
    loss = make_loss(name, **options)
    assert torch.autograd.gradcheck(lambda s: loss(s, targets[:2, :12]), scores[:2, :12].requires_grad_())


@pytest.mark.parametrize("name", NAMES)
def test_targets_get_no_gradient(name: Any) -> None:
    scores, targets = draw(3)
    targets.requires_grad_()
    make_loss(name)(scores.requires_grad_(), targets).backward()
    assert targets.grad is None


@case
@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_magnitudes_in_single_precision(
    name: Any, options: dict[str, Any], expected: Any, scale: float
) -> None:
    scores, targets = draw(4, scale=scale, dtype=torch.float32)
    loss = make_loss(name, **options)
    value = loss(scores, targets)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected(scores.tolist(), targets.tolist(), **options), rel=1e-5)
    exact = gradient(loss, scores.double(), targets.double())
    torch.testing.assert_close(gradient(loss, scores, targets).double(), exact, rtol=1e-5, atol=1e-6)


def test_list_mle_gradient_far_from_zero() -> None:
    # Half of the scores lie 20,000 below the rest: their own order must still be learned exactly.
    scores, targets = draw(5, dtype=torch.float32)
    scores[:, ::2] += 1e4
    scores[:, 1::2] -= 1e4
    exact = gradient(losses.list_mle, scores.double(), targets.double())
    torch.testing.assert_close(
        gradient(losses.list_mle, scores, targets).double(), exact, rtol=1e-6, atol=1e-7
    )


@case
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_half_precision(
    name: Any, options: dict[str, Any], expected: Any, dtype: torch.dtype, scale: float
) -> None:
    scores, targets = draw(6, scale=scale, dtype=dtype)
    loss = make_loss(name, **options)
    value = loss(scores, targets)
    assert value.dtype == torch.float32
    # The loops get the rounded numbers, and so tell the loss's error from that of its input.
    assert value.item() == pytest.approx(expected(scores.tolist(), targets.tolist(), **options), rel=1e-5)
    slope = gradient(loss, scores, targets)
    assert slope.dtype == dtype
    exact = gradient(loss, scores.double(), targets.double())
    torch.testing.assert_close(slope.double(), exact, rtol=0.01, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_autocast_changes_nothing(name: Any) -> None:
    scores, targets = draw(20, dtype=torch.float32)
    loss = make_loss(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(scores, targets)
    assert inside == loss(scores, targets)


@case
def test_equal_scores_and_equal_targets(name: Any, options: dict[str, Any], expected: Any) -> None:
    flat = torch.full((VIEWS, PATCHES), 3.0)
    _, targets = draw(7, dtype=torch.float32)
    loss = make_loss(name, **options)
    for one, other in ((flat, targets), (targets, flat), (flat, flat), (flat * 1e4, flat * 1e4)):
        wanted = expected(one.tolist(), other.tolist(), **options)
        assert loss(one, other).item() == pytest.approx(wanted, rel=1e-5, abs=1e-9)
        assert gradient(loss, one, other).isfinite().all()


def test_values_known_by_hand() -> None:
    flat, falling = torch.zeros(2, 3), torch.tensor([[3.0, 2.0, 1.0]] * 2)
    assert losses.list_mle(flat, falling).item() == pytest.approx(math.log(6))
    assert losses.list_net(flat, falling).item() == pytest.approx(math.log(3) / 3)
    assert losses.rank_net(flat, falling).item() == pytest.approx(math.log(2) / 2)
    assert losses.pointwise_mse(flat, falling).item() == pytest.approx(14 / 3)
    assert losses.focused(flat, falling, k=2).item() == pytest.approx(math.log(2) + math.log(2) / 2)


def test_ties_of_list_mle_go_by_index() -> None:
    scores, _ = draw(8)
    same_order = torch.arange(PATCHES, 0, -1, dtype=torch.float64).expand(VIEWS, -1)
    assert losses.list_mle(scores, torch.zeros_like(scores)) == losses.list_mle(scores, same_order)


@pytest.mark.parametrize("name", ["list_mle", "list_net", "rank_net", "focused"])
def test_a_shift_of_the_scores_changes_nothing(name: Any) -> None:
    scores, targets = draw(9)
    loss = make_loss(name)
    shifted = scores + torch.tensor([[-3e3], [0.0], [5.0], [1e4]], dtype=torch.float64)
    assert loss(shifted, targets).item() == pytest.approx(loss(scores, targets).item(), rel=1e-9)
    # Hence the gradient of a view sums to zero.
    assert gradient(loss, scores, targets).sum(1).abs().max() < 1e-12


def test_list_mle_reads_only_the_order_of_targets() -> None:
    scores, targets = draw(10)
    loss = make_loss("list_mle")
    assert loss(scores, targets) == loss(scores, (targets * 0.01 - 7).exp())
    assert loss(scores, targets) != loss(scores, -targets)


def test_rank_net_reads_targets_by_the_threshold() -> None:
    scores, targets = draw(11)
    loss = make_loss("rank_net", threshold=0.5)
    assert loss(scores, targets * 1e-3) == loss(scores, torch.zeros_like(targets))
    # A difference of exactly the threshold is none for a tie, as published.
    edge = torch.tensor([[0.5, 0.0]])
    assert loss(edge, edge) == loss(edge, edge * 8)


def test_rank_net_without_threshold_keeps_equal_targets_tied() -> None:
    scores = torch.tensor([[2.0, -1.0]])
    value = make_loss("rank_net", threshold=0.0)(scores, torch.zeros(1, 2))
    assert value.item() == pytest.approx(reference.rank_net(scores.tolist(), [[0.0, 0.0]]))


@pytest.mark.parametrize("name", NAMES)
def test_order_of_patches_does_not_matter(name: Any) -> None:
    scores, _ = draw(12)
    targets = scores.flip(1) * 0.3
    shuffled = torch.randperm(PATCHES, generator=torch.Generator().manual_seed(0))
    loss = make_loss(name)
    assert loss(scores[:, shuffled], targets[:, shuffled]).item() == pytest.approx(
        loss(scores, targets).item()
    )


@pytest.mark.parametrize("name", NAMES)
def test_following_the_gradient_finds_the_order(name: Any) -> None:
    generator = torch.Generator().manual_seed(13)
    targets = torch.stack([torch.randperm(12, generator=generator).float() for _ in range(3)])
    targets = (targets - 5.5) / 3.5
    scores = torch.zeros(3, 12, requires_grad=True)
    optimiser = torch.optim.Adam([scores], lr=0.2)
    loss = make_loss(name, k=4) if name == "focused" else make_loss(name)
    for _ in range(60):
        optimiser.zero_grad()
        loss(scores, targets).backward()
        optimiser.step()
    top = 4 if name == "focused" else 12  # focused leaves the rest unordered
    assert torch.equal(
        scores.argsort(1, descending=True)[:, :top], targets.argsort(1, descending=True)[:, :top]
    )


def sublist_of(slope: Tensor) -> list[list[int]]:
    """The positions that got a gradient."""
    return [row.nonzero().flatten().tolist() for row in slope]


def test_sublists_are_drawn_per_view_without_repetition() -> None:
    scores, targets = draw(14)
    loss = make_loss("list_mle_sub", sublist=6, generator=torch.Generator().manual_seed(3))
    chosen = sublist_of(gradient(loss, scores, targets))
    assert [len(row) for row in chosen] == [6] * VIEWS
    assert len({tuple(row) for row in chosen}) == VIEWS
    again = make_loss("list_mle_sub", sublist=6, generator=torch.Generator().manual_seed(3))
    wanted = reference.list_mle_of(scores.tolist(), targets.tolist(), chosen)
    assert again(scores, targets).item() == pytest.approx(wanted, rel=1e-12)


def test_the_generator_decides_the_sublists() -> None:
    scores, targets = draw(15)

    def values(seed: int) -> list[float]:
        loss = make_loss("list_mle_sub", generator=torch.Generator().manual_seed(seed))
        return [loss(scores, targets).item() for _ in range(3)]

    first = values(1)
    assert first == values(1)
    assert len({*first, *values(2)}) == 6, "every call and every seed draws anew"


def test_every_patch_is_drawn_equally_often() -> None:
    scores = torch.randn(4000, PATCHES, generator=torch.Generator().manual_seed(16))
    loss = make_loss("list_mle_sub", sublist=5, generator=torch.Generator().manual_seed(4))
    share = (gradient(loss, scores, scores.flip(1)) != 0).double().mean(0)
    expected = 5 / PATCHES
    deviation = math.sqrt(expected * (1 - expected) / 4000)
    assert (share - expected).abs().max() < 4.5 * deviation


@pytest.mark.parametrize("sublist", [PATCHES, 20])
def test_a_sublist_of_all_is_the_list(sublist: int) -> None:
    scores, targets = draw(17)
    assert make_loss("list_mle_sub", sublist=sublist)(scores, targets) == losses.list_mle(scores, targets)


def test_ties_go_by_index_in_sublists_too() -> None:
    scores, _ = draw(18)
    loss = make_loss("list_mle_sub", sublist=4, generator=torch.Generator().manual_seed(5))
    chosen = sublist_of(gradient(loss, scores, torch.zeros_like(scores)))
    again = make_loss("list_mle_sub", sublist=4, generator=torch.Generator().manual_seed(5))
    wanted = sum(reference.likelihood(row, keep) for row, keep in zip(scores.tolist(), chosen, strict=True))
    assert again(scores, torch.zeros_like(scores)).item() == pytest.approx(wanted / VIEWS)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("list_mel", {}, "loss is 'list_mel', must be one of list_mle, "),
        ("list_mle", {"sigma": 1.0}, "loss list_mle does not use sigma; it takes no options"),
        ("rank_net", {"k": 3}, "loss rank_net does not use k; it takes threshold, sigma"),
        ("list_mle_sub", {"sublist": 1}, "sublist is 1"),
        ("list_mle_sub", {"sublist": None}, "sublist is not given"),
        ("rank_net", {"threshold": -0.1}, "threshold is -0.1"),
        ("rank_net", {"threshold": math.nan}, "threshold is nan"),
        ("focused", {"sigma": 0.0}, "sigma is 0.0"),
        ("focused", {"k": 0}, "k is 0"),
    ],
)
def test_settings_without_a_meaning_are_refused(name: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_loss(name, **options)


def test_focus_on_all_patches_is_refused() -> None:
    scores, targets = draw(19)
    with pytest.raises(UserError, match="k of the focused loss is 19, must be below the 19 patches"):
        losses.focused(scores, targets, k=PATCHES)


@pytest.mark.parametrize("shapes", [((3, 4), (3, 5)), ((4,), (4,)), ((0, 4), (0, 4)), ((3, 0), (3, 0))])
def test_shapes_that_do_not_fit_are_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    for name in NAMES:
        with pytest.raises(ValueError, match=r"one shape \[N, V\]"):
            make_loss(name)(torch.zeros(shapes[0]), torch.zeros(shapes[1]))
