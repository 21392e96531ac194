"""The plot of a measurement: accuracy against tokens, bytes and operations of training."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from patchsieve.ranker.prove.arms import FULL, WHOLE_IMAGES
from patchsieve.ranker.prove.measure import ArmResult
from patchsieve.ranker.prove.report import Proof
from patchsieve.ranker.prove.verdict import HEADLINE

_INK, _PALE, _ACCENT, _WHOLE = "#1c1e24", "#a9b0bd", "#1f6feb", "#b42318"
_PANELS: list[tuple[str, str, Callable[[ArmResult], float]]] = [
    ("tokens of a photo", HEADLINE["tokens"], lambda arm: arm.train_cost.tokens),
    ("kB of a photo", HEADLINE["bytes"], lambda arm: arm.train_cost.nbytes / 1000),
    ("operations to train on, $10^{12}$", HEADLINE["tokens"], lambda arm: arm.train_cost.flops / 1e12),
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
    names = list(dict.fromkeys(arm.arm.name for arm in proof.arms))
    # The least conspicuous first: what is drawn later lies on top.
    ends = []
    for name in sorted(names, key=_weight):
        found = [arm for arm in proof.arms if arm.arm.name == name and regime in arm.right]
        if not found:
            continue
        intervals = [proof.interval(arm, regime) for arm in found]
        values = [interval.value for interval in intervals if interval]
        spans = [[i.value - i.low for i in intervals if i], [i.high - i.value for i in intervals if i]]
        colour = [_PALE, _WHOLE, _ACCENT][_weight(name)]
        x = [cost(arm) for arm in found]
        panel.errorbar(
            x,
            values,
            yerr=spans if _weight(name) else None,
            color=_INK if name == FULL else colour,
            marker="s" if name == FULL else "o",
            linewidth=1.8 if _weight(name) else 0.9,
            capsize=2.5,
            zorder=2 + _weight(name),
        )
        ends.append((values[-1], x[-1], name))
    _label(panel, ends)
    panel.set_xlim(left=0)
    panel.margins(x=0.12)
    panel.grid(color="#e3e6eb", linewidth=0.8)
    panel.set_axisbelow(True)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def _label(panel: Any, ends: list[tuple[float, float, str]]) -> None:
    """Names beside the last point of each line, moved apart where they would lie on each other."""
    panel.autoscale_view()
    bottom, top = panel.get_ylim()
    step = (top - bottom) * 0.034
    last = -1.0
    for value, x, name in sorted(ends):
        last = max(value, last + step)
        panel.annotate(
            name,
            (x, value),
            xytext=(x, last),
            textcoords="data",
            fontsize=8,
            va="center",
            ha="left",
            color=[_INK, _WHOLE, _ACCENT][_weight(name)],
            bbox={"boxstyle": "square,pad=0.1", "facecolor": "none", "edgecolor": "none"},
        )


def _weight(name: str) -> int:
    """0 for what drops patches by a rule, 1 for whole images, 2 for what the product selects."""
    from patchsieve.ranker.prove.arms import SELECTORS

    return 2 if name in SELECTORS else 1 if name in (*WHOLE_IMAGES, FULL) else 0
