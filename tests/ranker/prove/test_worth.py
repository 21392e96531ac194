"""Made-up data in which selecting pays, and some in which it does not: the verdict says which is which."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from patchsieve.ranker.prove.report import Proof, report_lines
from tests.helpers.proofs import measured, one_penalty, proof_folder
from tests.ranker.prove.independent import accuracy_of_random_patches

CONTROLS = ("random", "grid", "centre", "edge", "variance", "gradient", "quadtree", "resize")


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards whose marked patches carry the label, which are too fine for a smaller picture."""
    return proof_folder(tmp_path_factory.mktemp("marked"), train=80, test=48, in_marked=True)


@pytest.fixture(scope="module")
def proof(marked: Path) -> Proof:
    return measured(marked, selector="topk", controls=",".join(CONTROLS))


def test_selected_patches_win_where_they_carry_the_label(proof: Proof) -> None:
    arms = {arm.arm.name: arm for arm in proof.arms}
    assert arms["topk"].accuracy("pruned-pruned") == pytest.approx(1, abs=0.05)
    assert (arms["resize"].accuracy("pruned-pruned") or 0) < 0.5
    assert {arm.train_cost.tokens for arm in proof.arms if arm.arm.axis == "tokens"} == {9}
    verdict = next(one for one in proof.verdicts if (one.axis, one.regime) == ("tokens", "pruned-pruned"))
    assert verdict.advice == "keep the patches that topk chooses"
    assert f"verdict    {verdict.text}" in report_lines(proof)
    compared = [one for one in proof.comparisons if one.regime == "pruned-pruned"]
    assert [(one.control, one.outcome) for one in compared] == [(name, "ahead") for name in CONTROLS]


def test_random_patches_are_worth_what_an_independent_script_says(marked: Path, proof: Proof) -> None:
    arm = next(arm for arm in proof.arms if arm.arm.name == "random")
    interval = proof.interval(arm, "pruned-pruned")
    assert interval is not None
    # Other draws of patches each time, as prove's are others again.
    found = [accuracy_of_random_patches(marked, seed, arm.penalty) for seed in range(3)]
    assert interval.low < np.mean(found) < interval.high


@pytest.mark.usefixtures(one_penalty.__name__)
def test_a_resize_wins_where_the_selected_patches_carry_nothing(tmp_path: Path) -> None:
    folder = proof_folder(tmp_path, train=80, test=48, in_marked=False)
    proof = measured(folder, selector="topk", label="json:kind", controls="random,resize,variance")
    verdict = next(one for one in proof.verdicts if (one.axis, one.regime) == ("tokens", "pruned-pruned"))
    assert verdict.advice == "resize instead"
    assert "resize is ahead of topk by 0." in verdict.text
