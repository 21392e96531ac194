"""The plot of an evaluation: agreement beside its ceiling, and the reconstruction diagnostic."""

from __future__ import annotations

import importlib.util
import io
import math
from typing import Any

from patchsieve.pipeline.errors import UserError
from patchsieve.ranker.evaluate.measure import RANKER, Evaluation
from patchsieve.ranker.evaluate.reconstruction import SHARES, SPACES
from patchsieve.ranker.learning.agreement import Interval

_INK, _PALE, _ACCENT, _CEILING = "#1c1e24", "#a9b0bd", "#1f6feb", "#b42318"
# The rest is context for the ranker: the ones that bound it, and the plainest ways to choose.
_STYLES: dict[str, dict[str, Any]] = {
    RANKER: {"color": _ACCENT, "linewidth": 2.2, "marker": "o", "zorder": 5},
    "teacher's top": {"color": "#0f7b6c", "marker": "^", "zorder": 4},
    "teacher's bottom": {"color": "#b42318", "marker": "v", "zorder": 4},
    "grid": {"color": "#8250df", "marker": "s", "zorder": 3},
    "random": {"color": _INK, "linestyle": "--", "marker": "x", "zorder": 3},
}
_LABELS = {
    "pixel": "mean squared error, pixels from 0 to 1",
    "normalised": "error over each patch's variance",
}


def require_plots(wish: str) -> None:
    """Raise UserError where matplotlib is missing; `wish` is what asks for it, and how to do without."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError(f"{wish} needs matplotlib: pip install matplotlib")


def draw_evaluation(evaluation: Evaluation) -> bytes:
    """The plot as a PNG file."""
    from matplotlib.figure import Figure

    curves = evaluation.reconstruction
    figure = Figure(figsize=(15.5 if curves else 7.5, 5.4), layout="constrained", dpi=110)
    panels: Any = figure.subplots(1, 1 + len(SPACES) if curves else 1, squeeze=False)[0]
    _draw_agreement(panels[0], evaluation)
    if curves:
        for panel, space in zip(panels[1:], SPACES, strict=True):
            _draw_curves(panel, evaluation, space)
    scratch = io.BytesIO()
    figure.savefig(scratch, format="png")
    return scratch.getvalue()


def _draw_agreement(panel: Any, evaluation: Evaluation) -> None:
    # What gives no image an order has no bar.
    known = {
        name: agreement.spearman
        for name, agreement in evaluation.agreement.items()
        if math.isfinite(agreement.spearman.low)
    }
    names = sorted(known, key=lambda name: (name == RANKER, known[name].value))
    found = [known[name] for name in names]
    values = [interval.value for interval in found]
    panel.barh(
        names,
        values,
        xerr=_whiskers(found),
        color=[_ACCENT if name == RANKER else _PALE for name in names],
        error_kw={"ecolor": _INK, "elinewidth": 1, "capsize": 2.5},
        height=0.68,
    )
    top = evaluation.ceiling
    panel.axvspan(top.low, top.high, color=_CEILING, alpha=0.12, linewidth=0)
    panel.axvline(top.value, color=_CEILING, linewidth=1.4)
    panel.annotate(
        f"ceiling sqrt(rho)\n= {top.value:.2f}",
        (min(top.low, top.value), 0),
        xytext=(-5, 0),
        textcoords="offset points",
        ha="right",
        va="center",
        color=_CEILING,
    )
    panel.axvline(0, color=_INK, linewidth=0.8)
    panel.set_xlim(min(0.0, *(interval.low for interval in found)) - 0.06, 1.0)
    panel.set_xlabel("Spearman with the teacher's dense scores, mean over images")
    panel.set_title(
        f"{evaluation.ranker.name}: agreement with {evaluation.dense.teacher['name']}, "
        f"{len(evaluation.dense.keys)} images",
        loc="left",
        fontsize=11,
    )
    _tidy(panel, grid="x")


def _draw_curves(panel: Any, evaluation: Evaluation, space: str) -> None:
    assert evaluation.reconstruction is not None
    percent = [100 * share for share in SHARES]
    others = False
    for name, curve in evaluation.reconstruction.items():
        found = curve.errors[space]
        style = _STYLES.get(name)
        label = name if style else None if others else "other baselines"
        others = others or style is None
        values = [interval.value for interval in found]
        panel.plot(percent, values, label=label, **(style or {"color": _PALE, "linewidth": 1, "zorder": 2}))
        if name == RANKER:
            # The intervals of all would hide each other; the JSON has them.
            low, high = ([getattr(interval, end) for interval in found] for end in ("low", "high"))
            panel.fill_between(percent, low, high, color=_ACCENT, alpha=0.12, linewidth=0, zorder=1)
    panel.set_xticks(percent, [f"{share:.0f} %" for share in percent])
    panel.set_ylim(bottom=0)
    panel.set_xlabel("patches kept, highest first (band: 95 %, ranker)")
    panel.set_ylabel(_LABELS[space])
    panel.set_title(f"Teacher's error over all patches, {space} (diagnostic)", loc="left", fontsize=11)
    panel.legend(frameon=False, fontsize=9)
    _tidy(panel, grid="y")


def _whiskers(found: list[Interval]) -> list[list[float]]:
    """Distances from the values to the ends of their intervals."""
    low = [max(0.0, interval.value - interval.low) for interval in found]
    high = [max(0.0, interval.high - interval.value) for interval in found]
    return [low, high]


def _tidy(panel: Any, *, grid: str) -> None:
    panel.grid(axis=grid, color="#e3e6eb", linewidth=0.8)
    panel.set_axisbelow(True)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
