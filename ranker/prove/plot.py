"""The plot of a measurement: accuracy against tokens, bytes and operations of training."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from patchsieve.ranker.prove.arms import FULL, WHOLE_IMAGES, Arm
from patchsieve.ranker.prove.measure import ArmResult
from patchsieve.ranker.prove.report import Proof
from patchsieve.ranker.prove.verdict import HEADLINE

_INK, _PALE, _ACCENT, _WHOLE = "#1c1e24", "#a9b0bd", "#1f6feb", "#b42318"
_APART = 0.042
"""Between the names at the right, as a share of the height."""

_PANELS: list[tuple[str, str, Callable[[ArmResult], float]]] = [
    ("tokens of a photo", HEADLINE["tokens"], lambda arm: arm.train_cost.tokens),
    ("kB of a photo", HEADLINE["bytes"], lambda arm: arm.train_cost.nbytes / 1000),
    ("operations of training, $10^9$ a photo", HEADLINE["tokens"], lambda arm: arm.train_cost.flops / 1e9),
]


def draw_proof(proof: Proof) -> bytes:
    """The plot as a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(17, 5.6), layout="constrained", dpi=110)
    panels: Any = figure.subplots(1, len(_PANELS))
    for panel, (label, regime, cost) in zip(panels, _PANELS, strict=True):
        _draw(panel, proof, regime, cost)
        panel.set_xlabel(label)
        panel.set_ylabel("accuracy (bars: 95 %)")
        trained, tested = regime.split("-")
        panel.set_title(f"trained on {trained}, tested on {tested}", loc="left", fontsize=11)
    about = proof.about
    figure.suptitle(
        f"{about['encoder']}, {about['protocol']}: {about['train_images']} train, {about['test_images']} test images",
        x=0.01,
        ha="left",
        fontsize=12,
    )
    scratch = io.BytesIO()
    figure.savefig(scratch, format="png")
    return scratch.getvalue()


def _draw(panel: Any, proof: Proof, regime: str, cost: Callable[[ArmResult], float]) -> None:
    weights = {arm.arm.name: _weight(arm.arm) for arm in proof.arms}
    ends = []
    # The least conspicuous first: what is drawn later lies on top.
    for name, weight in sorted(weights.items(), key=lambda item: item[1]):
        found = [arm for arm in proof.arms if arm.arm.name == name and regime in arm.right]
        if not found:
            continue
        intervals = [proof.interval(arm, regime) for arm in found]
        values = [interval.value for interval in intervals if interval]
        spans = [[i.value - i.low for i in intervals if i], [i.high - i.value for i in intervals if i]]
        colour = [_PALE, _WHOLE, _ACCENT][weight]
        x = [cost(arm) for arm in found]
        panel.errorbar(
            x,
            values,
            yerr=spans if weight else None,
            color=_INK if name == FULL else colour,
            marker="s" if name == FULL else "o",
            linewidth=1.8 if weight else 0.9,
            capsize=2.5,
            zorder=2 + weight,
        )
        ends.append((values[-1], x[-1], name, [_INK, _WHOLE, _ACCENT][weight]))
    panel.set_xlim(left=0)
    _label(panel, ends)
    panel.grid(color="#e3e6eb", linewidth=0.8)
    panel.set_axisbelow(True)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def _label(panel: Any, ends: list[tuple[float, float, str, str]]) -> None:
    """Names at the right, in the order of the lines' last points, each tied to its own."""
    bottom, top = panel.get_ylim()
    ordered = sorted(ends)
    heights = spread([(value - bottom) / (top - bottom) for value, *_ in ordered], _APART)
    for (value, x, name, colour), height in zip(ordered, heights, strict=True):
        panel.annotate(
            name,
            (x, value),
            xytext=(1.03, height),
            textcoords="axes fraction",
            fontsize=8,
            va="center",
            color=colour,
            arrowprops={"arrowstyle": "-", "color": _PALE, "linewidth": 0.5, "shrinkB": 3},
            annotation_clip=False,
        )


def spread(heights: list[float], apart: float) -> list[float]:
    """Ascending heights from 0 to 1, moved as little as need be to lie `apart`: up first, then down from the top."""
    moved: list[float] = []
    for height in heights:
        moved.append(max(height, moved[-1] + apart) if moved else height)
    limit = 1.0
    for place in reversed(range(len(moved))):
        moved[place] = min(moved[place], limit)
        limit = moved[place] - apart
    return moved


def _weight(arm: Arm) -> int:
    """0 for what drops patches by a rule, 1 for whole images, 2 for what the product selects."""
    return 2 if arm.role == "selector" else int(arm.role == "reference" or arm.way in WHOLE_IMAGES)
