"""The study's results as a table with intervals, paired against the base, and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._common import show
from patchsieve.ranker.learning.agreement import mean_interval, paired_difference


def print_study(results: dict[str, Any]) -> None:
    """One line per arm: agreement, its share of the ceiling, and the difference to the base."""
    arms = results["arms"]
    base = np.array(arms["base"]["agreement"]["spread"]) if "base" in arms else None
    rows = []
    for name, arm in arms.items():
        spread, own = np.array(arm["agreement"]["spread"]), np.array(arm["agreement"][arm["own"]])
        found = mean_interval(spread)
        ceiling = results["references"][arm["own"]]["rho"] ** 0.5
        difference = ""
        if base is not None and name != "base":
            gain = paired_difference(spread, base)
            difference = f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
        rows.append(
            [
                name,
                f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]",
                difference,
                f"{own.mean():.3f}",
                f"{own.mean() / ceiling:.2f}",
                f"{arm['samples_per_s']:.0f}",
            ]
        )
    columns = ["arm", "agreement, spread reference", "to base", "own reference", "of its ceiling", "views/s"]
    show("ranker study", columns, rows)


def draw(results: dict[str, Any], scratch: Path) -> None:
    """Agreement with the common reference, one bar per arm, and the curve over views per image."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    arms = [arm for arm in results["arms"].values() if not arm["group"].startswith("views")]
    groups = list(dict.fromkeys(arm["group"] for arm in arms))
    arms.sort(key=lambda arm: groups.index(arm["group"]))
    views = [arm for arm in results["arms"].values() if arm["group"] == "views"]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 0.28 * len(arms) + 2), width_ratios=(3, 2))
    intervals = [mean_interval(np.array(arm["agreement"]["spread"])) for arm in arms]
    middle = np.array([found.value for found in intervals])
    low, high = np.array([found.low for found in intervals]), np.array([found.high for found in intervals])
    left.barh([arm["name"] for arm in arms], middle, xerr=[middle - low, high - middle], color="#4878a8")
    left.invert_yaxis()
    left.set_xlabel("Spearman with dense scores of held-out photos (95 % interval)")
    ceiling = results["references"]["spread"]["rho"] ** 0.5
    left.axvline(ceiling, color="black", linestyle=":", label=f"ceiling {ceiling:.2f}")
    left.legend(loc="lower right")
    if views:
        counts = [int(arm["name"].split()[1]) for arm in views]
        found = [mean_interval(np.array(arm["agreement"]["spread"])) for arm in views]
        means = np.array([each.value for each in found])
        errors = [means - [each.low for each in found], [each.high for each in found] - means]
        right.errorbar(counts, means, yerr=errors, marker="o", capsize=3)
        for arm in results["arms"].values():
            if arm["group"] == "views fresh":
                fresh = float(np.mean(arm["agreement"]["spread"]))
                right.axhline(
                    fresh, color="grey", linestyle="--", label=f"a fresh view each time {fresh:.3f}"
                )
                right.legend(loc="lower right")
        right.set_xscale("log", base=2)
        right.set_xticks(counts, [str(count) for count in counts])
        right.set_xlabel("views per image in the table, at equal steps")
        right.set_ylabel("Spearman")
    figure.tight_layout()
    figure.savefig(scratch, dpi=120)
    print(f"written: {scratch}")
