"""The charts of what runs measured: a training's course, an evaluation, a proof."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Sized
from typing import Any

from patchsieve.pipeline import storage
from patchsieve.pipeline.pictures.sheet import plain
from patchsieve.ranker.evaluate.measure import RANKER
from patchsieve.ranker.evaluate.report import REPORT_FILE as EVALUATION_FILE
from patchsieve.ranker.gallery.sources import PROOF_FILE, Source
from patchsieve.ranker.prove.arms import WHOLE_IMAGES
from patchsieve.ranker.prove.verdict import HEADLINE
from patchsieve.ranker.report.vectors import ACCENT, INK, PALE, SECOND, WARNING, Chart, draw_vectors
from patchsieve.ranker.train.progress import read_curve

_COSTS = (("tokens", "tokens of a photo", 1.0), ("nbytes", "kB of a photo", 1000.0))
_AXES: Mapping[str, Any] = {"tokens": "tokens", "nbytes": "bytes"}


_MOST_ROWS = 20_000
"""Of a chart: what a browser still shows, and more than any run of ours writes."""


def outcome_charts(sources: Sequence[Source]) -> list[Chart]:
    """Those of every source that has one; UserError for a file that is damaged."""
    found: list[Chart | None] = []
    for number, source in enumerate(sources):
        url = storage.absolute_url(source.path)
        if source.kind == "ranker":
            with storage.parsing(storage.join(url, "curve.csv")):
                found.append(_training(source, read_curve(url), f"train{number}"))
        elif source.kind == "evaluation":
            with storage.parsing(storage.join(url, EVALUATION_FILE)):
                found.append(_evaluation(source, read_evaluation(source), f"evaluation{number}"))
        elif source.kind == "proof":
            with storage.parsing(storage.join(url, PROOF_FILE)):
                found.append(_proof(source, read_proof(source), f"proof{number}"))
    return [chart for chart in found if chart is not None]


def read_evaluation(source: Source) -> dict[str, Any]:
    """What `evaluate` wrote."""
    return storage.read_object(storage.join(storage.absolute_url(source.path), EVALUATION_FILE))


def read_proof(source: Source) -> dict[str, Any]:
    """What `prove` wrote."""
    return storage.read_object(storage.join(storage.absolute_url(source.path), PROOF_FILE))


def _bounded(rows: Sized) -> None:
    """Raise ValueError for more than a chart can show."""
    if len(rows) > _MOST_ROWS:
        raise ValueError(f"{len(rows)} rows, a chart has at most {_MOST_ROWS}")


def _training(source: Source, points: Sequence[Mapping[str, str]], name: str) -> Chart | None:
    """Loss and agreement of a training as it went on; None where nothing was measured."""
    if not points:
        return None
    _bounded(points)
    places = [float(point["views_per_image"]) for point in points]
    agreement = [
        (x, float(point["agreement"])) for x, point in zip(places, points, strict=True) if point["agreement"]
    ]

    def draw(panels: Any) -> None:
        panels[0].plot(
            places, [float(point["loss"]) for point in points], color=SECOND, marker="o", markersize=3
        )
        panels[0].set(xlabel="views per image", ylabel="loss")
        panels[1].plot(
            *zip(*agreement, strict=True), color=ACCENT, marker="o", markersize=3
        ) if agreement else None
        panels[1].set(xlabel="views per image", ylabel="agreement, held out")

    best = max((value for _, value in agreement), default=math.nan)
    last = points[-1]
    return Chart(
        title=f"Training of {source.shown}",
        text=f"{int(last['step']):,} steps; the best agreement with the teacher on held-out images is {best:.3f}, on "
        f"{last['validation']}.",
        svg=draw_vectors(draw, panels=2, name=name),
        head=["step", "views per image", "loss", "agreement"],
        rows=[
            [
                f"{int(point['step']):,}",
                f"{float(point['views_per_image']):.4g}",
                f"{float(point['loss']):.4f}",
                f"{float(point['agreement']):.3f}" if point["agreement"] else "-",
            ]
            for point in points
        ],
    )


def _evaluation(source: Source, about: Mapping[str, Any], name: str) -> Chart:
    """Agreement of a ranker and of the baselines, beside its ceiling."""
    found = {
        str(who): dict(values["spearman"])
        for who, values in about["agreement"].items()
        if values["spearman"]["low"] is not None
    }
    _bounded(found)
    ordered = sorted(found, key=lambda who: float(found[who]["value"]))
    top = {end: float(about["ceiling"][end]) for end in ("value", "low", "high")}

    def draw(panels: Any) -> None:
        values = [float(found[who]["value"]) for who in ordered]
        spans = [
            [abs(float(found[who]["value"]) - float(found[who][end])) for who in ordered]
            for end in ("low", "high")
        ]
        colours = [ACCENT if who == RANKER else PALE for who in ordered]
        panels[0].barh(
            [plain(who) for who in ordered], values, xerr=spans, color=colours, ecolor=INK, height=0.7
        )
        panels[0].axvspan(top["low"], top["high"], color=WARNING, alpha=0.15, linewidth=0)
        panels[0].axvline(top["value"], color=WARNING, linewidth=1.5)
        panels[0].set(xlabel="Spearman with the teacher, mean over images")

    rows = []
    for who in reversed(ordered):
        of = about["agreement"][who]["of_ceiling"]["value"]
        span = f"{float(found[who]['low']):.3f} to {float(found[who]['high']):.3f}"
        rows.append(
            [who, f"{float(found[who]['value']):.3f}", span, "-" if of is None else f"{float(of):.3f}"]
        )
    mine = about["agreement"][RANKER]
    return Chart(
        title=f"Agreement beside its ceiling: {source.shown}",
        text=f"On {int(about['images'])} images the ranker agrees with its teacher by "
        f"{float(mine['spearman']['value']):.3f}; the reliability of the teacher's scores allows {top['value']:.3f} "
        "(line and band). Gray: baselines.",
        svg=draw_vectors(draw, name=name),
        head=["", "Spearman", "95 %", "of the ceiling"],
        rows=rows,
    )


def _proof(source: Source, about: Mapping[str, Any], name: str) -> Chart:
    """Accuracy against tokens and bytes: selectors, whole images, and what drops patches by a rule."""
    arms = [arm for arm in about["arms"] if arm["accuracy"]]
    _bounded(arms)

    def draw(panels: Any) -> None:
        for panel, (cost, label, scale) in zip(panels, _COSTS, strict=True):
            regime = HEADLINE[_AXES[cost]]
            for who in dict.fromkeys(str(arm["name"]) for arm in arms):
                mine = [arm for arm in arms if arm["name"] == who and regime in arm["accuracy"]]
                colour = _colour(mine[0]) if mine else PALE
                panel.plot(
                    [float(arm["train_cost"][cost]) / scale for arm in mine],
                    [float(arm["accuracy"][regime]["value"]) for arm in mine],
                    color=colour,
                    marker="o",
                    linewidth=2 if colour == ACCENT else 1,
                    zorder=3 if colour == ACCENT else 2,
                )
            trained, tested = regime.split("-")
            panel.set(xlabel=label, ylabel="accuracy", title=f"trained on {trained}, tested on {tested}")
            panel.set_xlim(left=0)
        for colour, label in _KINDS.items():
            panels[0].plot([], [], color=colour, marker="o", label=label)
        panels[0].figure.legend(loc="outside lower left", ncols=3)

    # Of lines that are many, kinds are told apart by colour; the table has the names.
    rows = [
        [
            str(arm["name"]),
            f"{float(arm['keep']):.3g}" if arm["keep"] else "-",
            f"{float(arm['train_cost']['tokens']):.1f}",
            f"{float(arm['train_cost']['nbytes']) / 1000:.2f}",
            *(_accuracy(arm, HEADLINE[_AXES[cost]]) for cost, *_ in _COSTS),
        ]
        for arm in arms
    ]
    return Chart(
        title=f"What a model learns from it: {source.shown}",
        text=f"Accuracy on {int(about['test_images'])} test images of {int(about['classes'])} classes against what a "
        "photo costs; the verdicts stand in the summary.",
        svg=draw_vectors(draw, panels=2, name=name),
        head=["", "keep ratio", "tokens", "kB", "accuracy, by tokens", "accuracy, by bytes"],
        rows=rows,
    )


_KINDS = {
    ACCENT: "patches that a selector keeps",
    WARNING: "whole images, also smaller or of a lower quality",
    PALE: "patches that a plain rule keeps",
}


def _colour(arm: Mapping[str, Any]) -> str:
    if arm["role"] == "selector":
        return ACCENT
    return WARNING if arm["role"] == "reference" or arm["name"].partition(" ")[0] in WHOLE_IMAGES else PALE


def _accuracy(arm: Mapping[str, Any], regime: str) -> str:
    found = arm["accuracy"].get(regime)
    return "-" if found is None or found["value"] is None else f"{float(found['value']):.3f}"
