"""Made-up data in which selecting pays, and some in which it does not: the verdict says which is which."""

from __future__ import annotations

from pathlib import Path

import pytest

from patchsieve.ranker.prove.report import report_lines
from tests.helpers.proofs import measured, proof_folder


def test_selected_patches_win_where_they_carry_the_label(tmp_path: Path) -> None:
    """And are too fine for a smaller picture."""
    folder = proof_folder(tmp_path, train=80, test=48, in_marked=True)
    controls = ["random", "grid", "centre", "edge", "variance", "gradient", "quadtree", "resize"]
    proof = measured(folder, selector="topk", controls=",".join(controls))
    arms = {arm.arm.name: arm for arm in proof.arms}
    assert arms["topk"].accuracy("pruned-pruned") == pytest.approx(1, abs=0.05)
    assert (arms["resize"].accuracy("pruned-pruned") or 0) < 0.5
    assert {arm.train_cost.tokens for arm in proof.arms if arm.arm.axis == "tokens"} == {9}
    verdict = next(one for one in proof.verdicts if (one.axis, one.regime) == ("tokens", "pruned-pruned"))
    assert verdict.advice == "keep the patches that topk chooses"
    assert f"verdict    {verdict.text}" in report_lines(proof)
    compared = [one for one in proof.comparisons if one.regime == "pruned-pruned"]
    assert [(one.control, one.outcome) for one in compared] == [(name, "ahead") for name in controls]


def test_a_resize_wins_where_the_selected_patches_carry_nothing(tmp_path: Path) -> None:
    folder = proof_folder(tmp_path, train=80, test=48, in_marked=False)
    proof = measured(folder, selector="topk", label="json:kind", controls="random,resize,variance")
    verdict = next(one for one in proof.verdicts if (one.axis, one.regime) == ("tokens", "pruned-pruned"))
    assert verdict.advice == "resize instead"
    assert "resize is ahead of topk by 0." in verdict.text
