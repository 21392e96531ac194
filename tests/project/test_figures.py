"""A figure that several pages tell is, on each of them, the one of the JSON that the measurement left."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.helpers.checkout import ROOT

README, PERFORMANCE, ESTIMATOR, STUDY = (
    "README.md",
    "docs/performance.md",
    "docs/estimator.md",
    "docs/ranker-study.md",
)
PRUNING, CHOOSING, EVIDENCE, FAQ = "docs/pruning.md", "docs/choosing.md", "docs/evidence.md", "docs/faq.md"
REPRODUCE, DESIGN = "docs/reproduce.md", "docs/design.md"


def study(arm: str) -> Callable[[Any], float]:
    """Mean agreement of an arm of the ranker study."""
    return lambda about: float(np.mean(about["arms"][arm]["agreement"]["spread"]))


def frozen_share(about: Any) -> float:
    rows = about["estimator"]["agreement"]["rows"]
    return float(rows["frozen, K = 30"]["gflop_per_view"] / rows["exact"]["gflop_per_view"])


def over_resized(about: Any) -> float:
    (arm,) = [arm for arm in about["groups"][0]["arms"] if arm["selector"] == "resized"]
    return float(arm["chosen_over_this"]["value"])


# The JSON in docs/, the figure in it, how it is written, and the words around it on each page that tells it.
FIGURES = [
    pytest.param(
        "performance-h100",
        lambda about: about["mae-base"]["compiled auto"]["views_s"],
        ",.0f",
        {
            README: "MAE-B for {} views a second",
            PERFORMANCE: "| 128 | **{}** |",
            ESTIMATOR: "exact scores {}:",
            REPRODUCE: "the {} views/s of the teacher",
        },
        id="MAE-B on an H100",
    ),
    pytest.param(
        "performance-h100",
        lambda about: about["mae-base"]["frozen 30 compiled 128"]["views_s"],
        ",.0f",
        {PERFORMANCE: "K = 30 | 128 | {} |", ESTIMATOR: "K = 30 makes {} views"},
        id="frozen on an H100",
    ),
    pytest.param(
        "performance-h100",
        lambda about: np.mean(
            [job["views_per_second"] for job in about["score_path"]["threads 6, compiled"]["job"]]
        ),
        ",.0f",
        {PERFORMANCE: "6 decoding threads | 1,533 | {} |", REPRODUCE: "the {} of the whole path"},
        id="the whole path on an H100",
    ),
    pytest.param(
        "performance-h100",
        lambda about: about["mae-base, as it was"]["as is fp32 64"]["views_s"],
        ",.0f",
        {PERFORMANCE: "patchsieve, fp32 | 64 | {} |", REPRODUCE: "in float32 ({} views/s"},
        id="float32 on an H100",
    ),
    pytest.param(
        "performance",
        lambda about: about["teacher"]["mae-base, decoder"]["gflop_per_view"],
        ".1f",
        {
            PERFORMANCE: "| mae-base | {} |",
            ESTIMATOR: "| exact | 8.61 / {} |",
            REPRODUCE: "views/s of {} GFLOP",
        },
        id="GFLOP of a view",
    ),
    pytest.param(
        "performance",
        lambda about: about["teacher"]["mae-base, decoder"]["gflop_per_view"],
        ".0f",
        {DESIGN: "({} GFLOP a view of MAE-B)"},
        id="GFLOP of a view, rounded",
    ),
    pytest.param(
        "estimator",
        frozen_share,
        ".1f",
        {
            README: "a little noisier, {} of the FLOPs",
            ESTIMATOR: "the same one for {} of the FLOPs",
            STUDY: "the same one for {} of the FLOPs",
            CHOOSING: "rankers as good for {} of the FLOPs",
            "pipeline/score/estimate.py": "a table to train on: {} of the FLOPs",
        },
        id="FLOPs of frozen scores",
    ),
    pytest.param(
        "pruning",
        lambda about: about["prune"]["forms"]["packed"]["of_re_encode"],
        ".2f",
        {
            README: "packed images take {} of a plain re-encode",
            FAQ: "and {} of the bytes",
            CHOOSING: "packed images take {} of a plain re-encode",
        },
        id="bytes of packed images",
    ),
    pytest.param(
        "pruning",
        lambda about: about["prune"]["forms"]["packed"]["of_re_encode"],
        ".3f",
        {PRUNING: "| **packed** | 9,615 | 0.160 | **{}** |"},
        id="bytes of packed images, in full",
    ),
    pytest.param(
        "pruning",
        lambda about: about["prune"]["forms"]["masked"]["of_re_encode"],
        ".2f",
        {CHOOSING: "masked ones {} and all tokens"},
        id="bytes of masked images",
    ),
    pytest.param(
        "evidence-scenes",
        over_resized,
        ".1f",
        {EVIDENCE: "of the objects, {} times as many", CHOOSING: "with them {} times as many objects"},
        id="windows over the smaller image",
    ),
    *(
        pytest.param("ranker-study", study(arm), ".3f", places, id=f"study: {arm}")
        for arm, places in {
            "views 1": {
                STUDY: "| views 1 | {} (",
                CHOOSING: "one view gave {}",
                ESTIMATOR: "1 view | 8.6 | 400 | {} |",
            },
            "views 2": {STUDY: "| views 2 | {} (", CHOOSING: "two {}, four"},
            "views 4": {
                STUDY: "| views 4 | {} (",
                CHOOSING: "four {}, eight",
                ESTIMATOR: "34.4 | 400 | {} |",
            },
            "views 8": {STUDY: "| views 8 | {} (", CHOOSING: "eight {} |"},
            "frozen, 3 views, 400 steps": {
                STUDY: "| frozen, 3 views, 400 steps | {} (",
                ESTIMATOR: "| 7.7 | 400 | {} |",
            },
            "frozen, 4 views, 200 steps": {
                STUDY: "| frozen, 4 views, 200 steps | {} (",
                ESTIMATOR: "| 10.3 | 200 | {} |",
            },
            "base": {
                STUDY: "| base | {} (",
                CHOOSING: "the paper's, {}, each",
                ESTIMATOR: "34.4 | 200 | {} |",
            },
            "loss rank_net, rate 0.001": {
                STUDY: "| loss rank_net, rate 0.001 | {} (",
                CHOOSING: "| {}, and `list_mle`",
            },
            "head cls, rate 0.001": {STUDY: "| head cls, rate 0.001 | {} (", CHOOSING: "of this length ({})"},
        }.items()
    ),
]


@pytest.mark.parametrize(("name", "figure", "form", "places"), FIGURES)
def test_a_figure_is_that_of_its_measurement_wherever_it_stands(
    name: str, figure: Callable[[Any], float], form: str, places: dict[str, str]
) -> None:
    value = format(figure(json.loads((ROOT / "docs" / f"{name}.json").read_text(encoding="utf-8"))), form)
    for page, words in places.items():
        text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
        assert words.format(value) in text, page


def test_the_readme_tells_of_the_bundled_ranker_what_its_card_does() -> None:
    card = (ROOT / "ranker" / "tiny" / "README.md").read_text(encoding="utf-8")
    share = card.partition("| of the ceiling | ")[2][:5]
    assert f"reaches {float(share):.2f} of what the reliability" in (ROOT / README).read_text(
        encoding="utf-8"
    )
