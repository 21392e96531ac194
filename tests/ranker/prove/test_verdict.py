"""Comparisons at equal cost, their intervals, and what they come to in words."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from patchsieve.pipeline.errors import UserError
from patchsieve.ranker.prove.arms import Arm, Axis
from patchsieve.ranker.prove.measure import REGIMES, ArmResult, Cost
from patchsieve.ranker.prove.verdict import compare, compare_all, judge, over_thumbnail

IMAGES = 200


def arm(
    name: str,
    right: np.ndarray,
    *,
    axis: Axis | None = "tokens",
    tokens: float = 49.0,
    nbytes: float = 5000.0,
    test_tokens: float | None = None,
    regimes: Any = REGIMES,
) -> ArmResult:
    cost = Cost(tokens=tokens, nbytes=nbytes, flops=1.0)
    tested = cost if test_tokens is None else Cost(tokens=test_tokens, nbytes=nbytes, flops=1.0)
    role = "selector" if axis is None else "control"
    return ArmResult(
        arm=Arm(name, role, 0.25, axis),
        numbers={},
        validation=0.5,
        penalty=0.1,
        train_cost=cost,
        test_cost=tested,
        right=dict.fromkeys(regimes, right[None]),
    )


def first(count: int) -> np.ndarray:
    """The first so many images right."""
    return np.arange(IMAGES) < count


def verdicts(selector: ArmResult, *controls: ArmResult) -> dict[tuple[str, str], str]:
    made, _ = compare_all(selector, controls, tolerance=0.05, seed=0)
    return {(one.axis, one.regime): one.text for one in judge(made)}


def test_a_difference_is_paired_and_its_interval_is_that_of_a_plain_bootstrap() -> None:
    random = np.random.default_rng(0)
    one, other = random.random(IMAGES) < 0.6, random.random(IMAGES) < 0.5
    found = compare(
        arm("topk", one, axis=None), arm("grid", other), "tokens", "full-pruned", tolerance=0, seed=0
    )
    assert found.ahead.value == pytest.approx(one.mean() - other.mean())
    # Image by image, with another generator.
    draws = np.random.default_rng(9)
    differences = sorted(
        sum(int(one[image]) - int(other[image]) for image in draws.integers(0, IMAGES, IMAGES)) / IMAGES
        for _ in range(1500)
    )
    assert found.ahead.low == pytest.approx(differences[37], abs=0.015)
    assert found.ahead.high == pytest.approx(differences[-38], abs=0.015)


def test_unequal_costs_are_not_compared() -> None:
    selector = arm("topk", first(100), axis=None)
    with pytest.raises(
        UserError, match=r"grid at 0.25 takes 60.0 tokens of a train photo and topk at 0.25 49.0"
    ):
        compare(selector, arm("grid", first(90), tokens=60), "tokens", "pruned-full", tolerance=0.05, seed=0)
    late = arm("grid", first(90), test_tokens=60)
    compare(selector, late, "tokens", "pruned-full", tolerance=0.05, seed=0)
    with pytest.raises(UserError, match=r"60.0 tokens of a test photo"):
        compare(selector, late, "tokens", "pruned-pruned", tolerance=0.05, seed=0)
    large = arm("jpeg", first(90), axis="bytes", nbytes=5300, tokens=196)
    with pytest.raises(UserError, match=r"5300.0 bytes .* differ by more than 5%"):
        compare(selector, large, "bytes", "pruned-full", tolerance=0.05, seed=0)
    compare(selector, large, "bytes", "pruned-full", tolerance=0.07, seed=0)


def test_what_is_refused_is_told_once_and_the_rest_is_compared() -> None:
    controls = [arm("grid", first(90)), arm("resize", first(90), tokens=64)]
    made, refused = compare_all(arm("topk", first(100), axis=None), controls, tolerance=0.05, seed=0)
    assert [(one.control, one.regime) for one in made] == [("grid", regime) for regime in REGIMES]
    assert len(refused) == 1
    assert refused[0].startswith("resize at 0.25 takes 64.0 tokens of a train photo")


def test_a_control_without_a_regime_has_no_comparison_there() -> None:
    fewer = arm("fewer", first(50), axis="bytes", regimes=("pruned-full",))
    made, refused = compare_all(arm("topk", first(100), axis=None), [fewer], tolerance=0.05, seed=0)
    assert [(one.regime, one.outcome) for one in made] == [("pruned-full", "ahead")]
    assert refused == []


def test_the_selector_wins_where_it_is_ahead_of_all() -> None:
    text = verdicts(arm("topk", first(150), axis=None), arm("resize", first(100)), arm("grid", first(60)))[
        "tokens", "pruned-pruned"
    ]
    assert text.startswith(
        "at 0.25 of the patches and equal tokens, trained and tested on pruned photos: keep the"
    )
    assert "keep the patches that topk chooses; topk is ahead of all 2 controls" in text
    assert "of the best of them, resize, by 0.250 (" in text


def test_resize_instead_where_that_is_the_truth() -> None:
    found = verdicts(
        arm("topk", first(100), axis=None),
        arm("grid", first(190)),
        arm("resize", first(150)),
        arm("edge", first(40)),
    )
    text = found["tokens", "full-pruned"]
    assert "resize instead; resize is ahead of topk by 0.250 (" in text
    assert "so is grid" in text
    assert text.endswith("topk is ahead of edge")


def test_what_patches_add_to_their_thumbnail() -> None:
    selector = arm("topk", first(120), axis=None)
    mixed = dataclasses.replace(selector, arm=dataclasses.replace(selector.arm, background=48))
    alone = dataclasses.replace(selector, arm=Arm("thumbnail", "reference", background=48))
    alone = dataclasses.replace(alone, right=dict.fromkeys(REGIMES, first(100)[None]))
    (note,) = over_thumbnail(mixed, [alone, mixed], seed=0)
    assert note.startswith("topk+48 at 0.25 less its thumbnail alone, which costs 49 tokens: 0.100 (0.0")
    assert over_thumbnail(selector, [alone, selector], seed=0) == []


def test_other_patches_instead() -> None:
    found = verdicts(arm("topk", first(100), axis=None), arm("grid", first(150)), arm("resize", first(60)))
    assert "keep by grid instead; grid is ahead of topk" in found["tokens", "pruned-pruned"]


@pytest.mark.parametrize(
    ("name", "advice"),
    [("jpeg", "lower the JPEG quality instead"), ("fewer", "keep fewer whole images instead")],
)
def test_instead_of_bytes(name: str, advice: str) -> None:
    found = verdicts(arm("topk", first(100), axis=None), arm(name, first(150), axis="bytes", tokens=196))
    assert advice in found["bytes", "pruned-full"]


def test_nothing_shown_where_intervals_hold_zero() -> None:
    found = verdicts(
        arm("topk", first(101), axis=None),
        arm("resize", first(100) ^ (np.arange(IMAGES) > 197)),
        arm("grid", first(9)),
    )
    text = found["tokens", "pruned-pruned"]
    assert (
        "nothing shows that selecting pays; topk is not told apart from resize (from resize by -0.005" in text
    )
    assert text.endswith("topk is ahead of grid")
