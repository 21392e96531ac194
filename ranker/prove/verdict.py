"""Which arms beat which at equal cost, beyond their intervals, and what that means in words."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from patchsieve.pipeline.errors import UserError
from patchsieve.ranker.learning.agreement import Interval
from patchsieve.ranker.prove.arms import FEWER, JPEG, RESIZE, THUMBNAIL, Axis
from patchsieve.ranker.prove.intervals import Groups, difference
from patchsieve.ranker.prove.measure import REGIMES, ArmResult, Cost

HEADLINE: dict[Axis, str] = {"tokens": "pruned-pruned", "bytes": "pruned-full"}
"""The regime that a saving is for: fewer tokens wherever the model runs, fewer bytes where training data are stored."""

_COSTS: dict[Axis, str] = {"tokens": "tokens", "bytes": "nbytes"}
_ADVICE = {
    RESIZE: "resize instead",
    JPEG: "lower the JPEG quality instead",
    FEWER: "keep fewer whole images instead",
}
_SAID = {
    "full-pruned": "trained on full, tested on pruned photos",
    "pruned-pruned": "trained and tested on pruned photos",
    "pruned-full": "trained on pruned, tested on full photos",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """A selector's accuracy less a control's, at one cost and in one regime; paired over test images and seeds."""

    selector: str
    control: str
    keep: float
    axis: Axis
    regime: str
    ahead: Interval

    @property
    def outcome(self) -> str:
        """`ahead`, `behind`, or `even` where the interval holds 0."""
        return "ahead" if self.ahead.low > 0 else "behind" if self.ahead.high < 0 else "even"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a set of comparisons at one ratio, cost and regime comes to. `advice`: in a few words."""

    keep: float
    axis: Axis
    regime: str
    advice: str
    text: str


def compare(
    selector: ArmResult,
    control: ArmResult,
    axis: Axis,
    regime: str,
    *,
    tolerance: float,
    seed: int,
    groups: Groups = (),
) -> Comparison:
    """The two, paired by image; UserError where one costs more than the other by more than `tolerance`."""
    pairs = [("train", selector.train_cost, control.train_cost)]
    if regime != "pruned-full":
        pairs.append(("test", selector.test_cost, control.test_cost))
    for split, one, other in pairs:
        _check_equal(selector, control, axis, split, one, other, tolerance)
    assert selector.arm.keep is not None, "a selector has a ratio"
    return Comparison(
        selector=selector.arm.name,
        control=control.arm.name,
        keep=selector.arm.keep,
        axis=axis,
        regime=regime,
        ahead=difference(selector.right[regime], control.right[regime], seed=seed, groups=groups),
    )


def _check_equal(
    selector: ArmResult, control: ArmResult, axis: Axis, split: str, one: Cost, other: Cost, tolerance: float
) -> None:
    paid, asked = getattr(one, _COSTS[axis]), getattr(other, _COSTS[axis])
    if abs(asked - paid) > tolerance * paid:
        raise UserError(
            f"{control.arm.title} takes {asked:.1f} {axis} of a {split} photo and {selector.arm.title} {paid:.1f}: "
            f"they differ by more than {tolerance:.0%}"
        )


def compare_all(
    selector: ArmResult, controls: Sequence[ArmResult], *, tolerance: float, seed: int, groups: Groups = ()
) -> tuple[list[Comparison], list[str]]:
    """All comparisons of a selector with controls of its ratio, and why others were refused."""
    made, refused = [], []
    for control in controls:
        axis = control.arm.axis
        assert axis is not None, "a control equals selectors in some cost"
        for regime in REGIMES:
            if regime not in control.right:
                continue
            try:
                made.append(
                    compare(selector, control, axis, regime, tolerance=tolerance, seed=seed, groups=groups)
                )
            except UserError as error:
                refused.append(str(error))
    return made, list(dict.fromkeys(refused))


def over_thumbnail(
    selector: ArmResult, arms: Sequence[ArmResult], *, seed: int, groups: Groups = ()
) -> list[str]:
    """What the patches add to a selector's thumbnail, which alone costs less; nothing for one without."""
    alone = next((arm for arm in arms if arm.arm.way == THUMBNAIL), None)
    if alone is None or not selector.arm.background:
        return []
    regime = HEADLINE["tokens"]
    ahead = difference(selector.right[regime], alone.right[regime], seed=seed, groups=groups)
    return [
        f"{selector.arm.title} less its thumbnail alone, which costs {alone.train_cost.tokens:.0f} tokens: "
        f"{_span(ahead, 1)}, {_SAID[regime]}"
    ]


def judge(comparisons: Sequence[Comparison]) -> list[Verdict]:
    """A verdict for each ratio, cost and regime that there are comparisons of, in their order."""
    groups: dict[tuple[float, Axis, str], list[Comparison]] = {}
    for one in comparisons:
        groups.setdefault((one.keep, one.axis, one.regime), []).append(one)
    return [_verdict(*key, group) for key, group in groups.items()]


def _verdict(keep: float, axis: Axis, regime: str, group: Sequence[Comparison]) -> Verdict:
    by = {
        outcome: [one for one in group if one.outcome == outcome] for outcome in ("ahead", "even", "behind")
    }
    name = group[0].selector
    if by["behind"]:
        whole = [one for one in by["behind"] if one.control in _ADVICE]
        best = min(whole or by["behind"], key=lambda one: one.ahead.value)
        advice = _ADVICE.get(best.control, f"keep by {best.control} instead")
        others = [one.control for one in by["behind"] if one is not best]
        text = f"{best.control} is ahead of {name} by {_span(best.ahead, -1)}"
        text += f"; so {'are' if len(others) > 1 else 'is'} {', '.join(others)}" if others else ""
    elif by["even"]:
        whole = [one for one in by["even"] if one.control in _ADVICE]
        best = min(whole or by["even"], key=lambda one: one.ahead.value)
        advice = "nothing shows that selecting pays"
        text = f"{name} is not told apart from {', '.join(one.control for one in by['even'])}"
        text += f" (from {best.control} by {_span(best.ahead, 1)})"
    else:
        best = min(by["ahead"], key=lambda one: one.ahead.value)
        advice = f"keep the patches that {name} chooses"
        count = len(group)
        text = f"{name} is ahead of {f'all {count} controls' if count > 1 else best.control}"
        text += f", of the best of them, {best.control}," if count > 1 else ""
        text += f" by {_span(best.ahead, 1)}"
    if by["ahead"] and len(by["ahead"]) < len(group):
        text += f"; {name} is ahead of {', '.join(one.control for one in by['ahead'])}"
    text = f"at {keep:.3g} of the patches and equal {axis}, {_SAID[regime]}: {advice}; {text}"
    return Verdict(keep=keep, axis=axis, regime=regime, advice=advice, text=text)


def _span(interval: Interval, sign: int) -> str:
    ends = sorted((sign * interval.low, sign * interval.high))
    return f"{sign * interval.value:.3f} ({ends[0]:.3f} to {ends[1]:.3f})"
