"""What the scenes say: a table with paired intervals, a verdict in words, a plot."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks._common import show
from benchmarks._scene_arms import Arm
from benchmarks._scene_store import Facts
from patchsieve.ranker.evaluate.report_parts import plain
from patchsieve.ranker.learning.agreement import Interval
from patchsieve.ranker.prove.intervals import crossed_bootstrap

SAID = {
    "crop": "the probe sees the kept rectangle",
    "fill": "the probe sees the whole scene, dropped blocks flat",
}

_WHOLE, _JPEG = "full", "jpeg"
"""Arms that cost more tokens than a selector."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """An arm on test scenes; `[N]` each: `numbers`, `share` of the object kept, `nbytes`, and whether it is `right`."""

    arm: Arm
    tokens: int
    numbers: NDArray[np.int64]
    share: NDArray[np.float64]
    nbytes: NDArray[np.int64]
    right: NDArray[np.float64]


def report(
    measured: Sequence[Measured], facts: Mapping[int, Facts], choice: Mapping[str, Any], *, seed: int
) -> dict[str, Any]:
    """Everything as JSON holds it: for each ratio and way a group with the chosen selector against each other arm."""
    groups = []
    pairs = sorted({(one.arm.keep, one.arm.way) for one in measured if one.arm.scores})
    for keep, way in pairs:
        arms = [one for one in measured if one.arm.shape == "full" or one.arm.keep == keep]
        arms = [one for one in arms if one.arm.way == way or not one.arm.scores]
        chosen = next((one for one in arms if one.arm.selector == choice["selector"]), None)
        if chosen is None or not any(one.arm.scores == "told" for one in arms):
            continue  # not measured to its end
        lines = [_line(one, chosen, facts, seed) for one in arms]
        groups.append(
            {"keep": keep, "way": way, "arms": lines, "verdict": _verdict(lines, choice["selector"])}
        )
    sharp = np.array([one.sharpness for one in facts.values()])
    return {
        "choice": dict(choice),
        "scenes": len(facts),
        "objects": len({one.object for one in facts.values()}),
        "backgrounds": len({one.background for one in facts.values()}),
        "object_sharper_by": [float(q) for q in np.quantile(sharp[:, 0] / sharp[:, 1], (0.1, 0.5, 0.9))],
        "groups": groups,
    }


def _line(one: Measured, chosen: Measured, facts: Mapping[int, Facts], seed: int) -> dict[str, Any]:
    both, here, there = np.intersect1d(one.numbers, chosen.numbers, return_indices=True)
    named = [facts[number] for number in both.tolist()]
    columns = [chosen.right[there], one.right[here]]
    groups = [[each.object for each in named], [each.background for each in named]]

    def interval(columns: Sequence[NDArray[Any]], of: Any) -> dict[str, float | None]:
        return _as_json(crossed_bootstrap(columns, of, groups, seed=seed))

    return {
        "selector": one.arm.selector,
        "tokens": one.tokens,
        "bytes": float(one.nbytes[here].mean()),
        "scenes": len(both),
        "share": interval([one.share[here]], lambda mean: mean),
        "share_chosen_minus_this": interval([chosen.share[there], one.share[here]], lambda a, b: a - b),
        "recognition": interval(columns[1:], lambda mean: mean),
        "chosen_minus_this": interval(columns, lambda a, b: a - b),
        "chosen_over_this": interval(columns, lambda a, b: a / b),
    }


def _as_json(interval: Interval) -> dict[str, float | None]:
    """None where a draw had nothing to divide by: JSON knows no NaN."""
    return {name: plain(getattr(interval, name)) for name in ("value", "low", "high")}


def _verdict(lines: Sequence[Mapping[str, Any]], chosen: str) -> str:
    told = next(line for line in lines if line["selector"].startswith("told"))
    own = next(line for line in lines if line["selector"] == chosen)
    others = [line for line in lines if line not in (told, own) and line["selector"] not in (_WHOLE, _JPEG)]
    ahead, even, behind = _outcomes(others, "chosen_minus_this")
    more, like, less = _outcomes(
        [line for line in others if line["share"]["low"] < 1], "share_chosen_minus_this"
    )
    parts = [
        f"{chosen} keeps {own['share']['value']:.3f} of the objects and names {own['recognition']['value']:.3f} of them"
    ]
    said = {"keeps more than": more, "as much as": like, "less than": less}
    said |= {"names more than": ahead, "not told apart from": even, "fewer than": behind}
    for words, names in said.items():
        if names:
            parts.append(f"{words} {', '.join(names)}")
    small = next((line["chosen_over_this"] for line in lines if line["selector"] == "resized"), None)
    if small is not None:
        parts.append(f"{_span(small, 2)} times the image of equal tokens")
    if told["recognition"]["value"] > 0:
        parts.append(
            f"{own['recognition']['value'] / told['recognition']['value']:.2f} of the bound "
            f"({told['recognition']['value']:.3f}, told where it is)"
        )
    for name, words in ((_JPEG, "the JPEG of as many bytes"), (_WHOLE, "the whole scene")):
        line = next((line for line in lines if line["selector"] == name), None)
        if line is not None:
            parts.append(f"{_span(line['chosen_minus_this'])} from {words}")
    advice = "keep windows" if not behind and not even else "nothing shows that selecting pays"
    if behind:
        advice = "resize instead" if "resized" in behind else f"{behind[0]} is better"
    elif even and small is not None and (small["low"] or 0) > 1:
        advice = "select rather than resize"
        advice += "" if more and not like and not less else "; the scores are not what wins"
    return f"{advice}: {'; '.join(parts)}"


def _outcomes(lines: Sequence[Mapping[str, Any]], gap: str) -> tuple[list[str], list[str], list[str]]:
    """The arms that the chosen one is ahead of beyond the interval of `gap`, even with, and behind."""
    ahead: list[str] = []
    even: list[str] = []
    behind: list[str] = []
    for line in lines:
        place = ahead if line[gap]["low"] > 0 else behind if line[gap]["high"] < 0 else even
        place.append(line["selector"])
    return ahead, even, behind


def print_report(found: Mapping[str, Any]) -> None:
    """Tables on the terminal, each with its verdict."""
    columns = (
        "arm",
        "tokens",
        "kB",
        "scenes",
        "share kept",
        "chosen minus this",
        "named",
        "chosen minus this",
    )
    for group in found["groups"]:
        rows = [
            (
                line["selector"],
                str(line["tokens"]),
                f"{line['bytes'] / 1000:.1f}",
                str(line["scenes"]),
                f"{line['share']['value']:.3f}",
                _span(line["share_chosen_minus_this"]),
                _span(line["recognition"]),
                _span(line["chosen_minus_this"]),
            )
            for line in sorted(group["arms"], key=lambda line: -line["recognition"]["value"])
        ]
        show(f"{group['keep']:.0%} of the tokens; {SAID[group['way']]}", columns, rows)
        print(group["verdict"])
    if found["texture"]:
        rows = [
            (name, *(f"{shares[filling]:.3f}" for filling in ("object", "texture", "nothing")))
            for name, shares in found["texture"]["shares"].items()
        ]
        show("share of the ellipse kept at 25 %", ("selector", "object", "texture", "nothing"), rows)


def _span(interval: Mapping[str, float | None], digits: int = 3) -> str:
    value, low, high = (
        "?" if number is None else f"{number:.{digits}f}"
        for number in (interval[k] for k in ("value", "low", "high"))
    )
    return f"{value} ({low} to {high})"


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Recognition of every arm with its interval, a panel for each ratio and way."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = found["groups"]
    if not groups:
        return
    figure, axes = pyplot.subplots(
        1, len(groups), figsize=(4.6 * len(groups), 4.4), squeeze=False, sharex=True
    )
    for axis, group in zip(axes[0], groups, strict=True):
        lines = sorted(group["arms"], key=lambda line: line["recognition"]["value"])
        value, low, high = (
            np.array([line["recognition"][end] for line in lines]) for end in ("value", "low", "high")
        )
        colours = [
            "#c44e52" if line["selector"] == found["choice"]["selector"] else "#4878a8" for line in lines
        ]
        names = [f"{line['selector']} ({line['tokens']})" for line in lines]
        axis.barh(names, value, xerr=[value - low, high - value], color=colours, capsize=2)
        axis.set_title(f"{group['keep']:.0%}, {group['way']}, {lines[0]['scenes']} scenes")
        axis.set_xlabel("objects named (95 % interval)")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    print(f"written: {path}")
