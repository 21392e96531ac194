"""The charts of a page: distributions, what a keep ratio holds, and agreement against its ceiling.

Shape suffixes: N images, L patches of an image, R keep ratios.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchsieve.ranker.gallery.pictured import Pictured, ranks
from patchsieve.ranker.learning.agreement import ceiling, mean_interval, spearman, spearman_brown
from patchsieve.ranker.report.vectors import ACCENT, INK, PALE, SECOND, WARNING, Chart, draw_vectors

RATIOS = np.arange(5, 101, 5) / 100
_SHOWN = (0.25, 0.5, 0.75)


def gallery_charts(images: Sequence[Pictured]) -> list[Chart]:
    """Those that the images of the gallery give."""
    found = [_held(images), _agreements(images), _scores(images), _kept(images)]
    return [chart for chart in found if chart is not None]


def _held(images: Sequence[Pictured]) -> Chart | None:
    """The share of the teacher's scores that a keep ratio holds."""
    whole = [
        one for one in images if one.teacher is not None and one.whole and not np.isnan(one.teacher).any()
    ]
    if not whole:
        return None
    curves = {"the teacher's own order": _mean_held(whole, "teacher")}
    ranked = [one for one in whole if one.ranker is not None and not np.isnan(one.ranker).any()]
    if ranked:
        curves["the ranker's order"] = _mean_held(ranked, "ranker")
    curves["at random"] = RATIOS
    colours = {"the teacher's own order": SECOND, "the ranker's order": ACCENT, "at random": PALE}

    def draw(panels: Any) -> None:
        for name, held_R in curves.items():
            panels[0].plot(100 * RATIOS, 100 * held_R, label=name, color=colours[name], linewidth=2)
        panels[0].set(xlim=(0, 100), ylim=(0, 101), xlabel="patches kept, %", ylabel="of the scores, %")
        panels[0].legend(loc="lower right")

    at = [int(np.flatnonzero(np.isclose(RATIOS, share))[0]) for share in _SHOWN]
    best = "the ranker's order" if ranked else "the teacher's own order"
    told = ", ".join(f"{curves[best][place]:.0%} at {RATIOS[place]:.0%}" for place in at)
    return Chart(
        title="What a keep ratio holds",
        text=f"Share of the teacher's scores in the patches that stay, mean over {len(ranked or whole)} images; by "
        f"{best}: {told}.",
        svg=draw_vectors(draw, name="held"),
        head=["kept", *curves],
        rows=[
            [f"{RATIOS[r]:.0%}", *(f"{held[r]:.1%}" for held in curves.values())]
            for r in range(1, len(RATIOS), 2)
        ],
    )


def _mean_held(images: Sequence[Pictured], by: str) -> NDArray[np.float64]:
    """Mean share of the teacher's scores that each ratio holds in an order, float64 `[R]`."""
    shares = []
    for one in images:
        assert one.teacher is not None
        worth_L = np.exp(one.teacher.astype(np.float64) - one.teacher.max())
        ordered_L = np.cumsum(worth_L[np.argsort(ranks(getattr(one, by)))]) / worth_L.sum()
        counts = np.maximum(1, (len(worth_L) * RATIOS + 1e-6).astype(np.int64))
        shares.append(ordered_L[counts - 1])
    mean: NDArray[np.float64] = np.mean(shares, axis=0)
    return mean


def _agreements(images: Sequence[Pictured]) -> Chart | None:
    """How well ranker and teacher agree within each image, beside what the teacher's own noise allows."""
    values = [value for value in (one.agreement() for one in images) if math.isfinite(value)]
    if not values:
        return None
    found = mean_interval(np.array(values))
    whole = [one for one in images if one.whole]
    halves = [one.halves for one in (whole or images) if one.halves is not None]
    top = _ceiling(halves)

    def draw(panels: Any) -> None:
        panels[0].hist(values, bins=np.linspace(min(0.0, *values), 1, 25), color=ACCENT, alpha=0.75)
        panels[0].axvline(found.value, color=INK, linewidth=1.5)
        panels[0].set(xlabel="Spearman of ranker and teacher within an image", ylabel="images")
        if top is not None:
            panels[0].axvline(top, color=WARNING, linewidth=1.5, linestyle="--", label=f"ceiling {top:.2f}")
            panels[0].legend(loc="upper left")

    said = (
        f"The reliability of the teacher's scores, from one half of the views against the other in {len(halves)} "
        f"images, allows at most {top:.2f}."
        if top is not None
        else "How much of the rest is the teacher's noise is not known: that takes tables of --crop center in which "
        "every patch has two scores, or patchsieve evaluate."
    )
    return Chart(
        title="Agreement of ranker and teacher",
        text=f"Mean over {found.images} images: {found.value:.3f} (95 %: {found.low:.3f} to {found.high:.3f}). {said}",
        svg=draw_vectors(draw, name="agreement"),
        head=["", "agreement"],
        rows=[
            [f"{share} % of the images are above", f"{np.percentile(values, 100 - share):.3f}"]
            for share in (90, 50, 10)
        ],
    )


def _ceiling(halves: Sequence[NDArray[np.float32]]) -> float | None:
    """The highest agreement that anything can have with these scores, None where no image has them twice."""
    if not halves:
        return None
    sizes = {half.shape for half in halves}
    agreement = [
        spearman(stacked[:, 0], stacked[:, 1])
        for size in sizes
        for stacked in [np.stack([half for half in halves if half.shape == size])]
    ]
    mean = float(np.nanmean(np.concatenate(agreement)))
    return float(ceiling(spearman_brown(mean))) if math.isfinite(mean) else None


def _scores(images: Sequence[Pictured]) -> Chart | None:
    """How scores lie: within images, and from image to image."""
    within = [one.teacher - np.nanmean(one.teacher) for one in images if one.teacher is not None]
    means = [one.mean_score for one in images if one.mean_score is not None]
    if not within or not means:
        return None
    values = np.concatenate(within)
    values = values[np.isfinite(values)]

    def draw(panels: Any) -> None:
        panels[0].hist(values, bins=50, color=SECOND, alpha=0.75)
        panels[0].set(xlabel="log score less its image's mean", ylabel="patches")
        panels[1].hist(means, bins=min(40, max(5, len(means) // 3)), color=SECOND, alpha=0.75)
        panels[1].set(xlabel="mean score of an image", ylabel="images")

    tenth = [np.percentile(values, share) for share in (10, 50, 90)]
    return Chart(
        title="The teacher's scores",
        text="Left: patches within their images; a score is how much the reconstruction changes without the patch. "
        f"Right: the mean of each of {len(means)} images.",
        svg=draw_vectors(draw, panels=2, name="scores"),
        head=["percentile", "log score less the image's mean", "mean score of an image"],
        rows=[
            [f"{share}", f"{value:.3f}", f"{np.percentile(means, share):.4g}"]
            for share, value in zip((10, 50, 90), tenth, strict=True)
        ],
    )


def _kept(images: Sequence[Pictured]) -> Chart | None:
    """How much of each image a pruned set keeps, and where."""
    pruned = [one for one in images if one.origin == "pruned"]
    if not pruned:
        return None
    shares = [100 * (~np.isnan(one.ranker)).mean() for one in pruned if one.ranker is not None]
    grid = pruned[0].grid
    same = [~np.isnan(one.ranker) for one in pruned if one.ranker is not None and one.grid == grid]
    where_L = 100 * np.mean(same, axis=0)

    def draw(panels: Any) -> None:
        panels[0].hist(shares, bins=np.linspace(0, 100, 21), color=ACCENT, alpha=0.75)
        panels[0].set(xlim=(0, 100), xlabel="patches kept of an image, %", ylabel="images")
        shown = panels[1].imshow(where_L.reshape(grid, grid), cmap="viridis", vmin=0, vmax=100)
        panels[1].set(xticks=[], yticks=[], title="how often each place stays, %")
        panels[1].grid(visible=False)
        panels[1].figure.colorbar(shown, ax=panels[1])

    return Chart(
        title="What the pruned set keeps",
        text=f"Of {len(pruned)} images, {np.mean(shares):.1f} % of the patches on average; places stay in "
        f"{where_L.min():.0f} to {where_L.max():.0f} % of the images.",
        svg=draw_vectors(draw, panels=2, name="kept"),
        head=["", "patches kept of an image"],
        rows=[[name, f"{value:.1f} %"] for name, value in _spread(shares)],
    )


def _spread(values: Sequence[float]) -> list[tuple[str, float]]:
    return [("least", min(values)), ("median", float(np.median(values))), ("most", max(values))]
