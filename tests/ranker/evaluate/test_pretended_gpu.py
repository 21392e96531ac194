"""An evaluation whose teacher and ranker are on a pretended GPU."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from patchsieve.pipeline.row_config import Precision
from patchsieve.pipeline.scoring.api import load_teacher
from patchsieve.ranker.evaluate.dense import measure_dense
from patchsieve.ranker.evaluate.measure import Evaluation, evaluate_ranker
from patchsieve.ranker.evaluate.partitions import PartitionScorer
from patchsieve.ranker.model.checkpoint import load_ranker
from tests.helpers.evaluations import (
    RATIO,
    VIEWS,
    evaluation_images,
    made_up_fits,
    ranker_of,
    small_teacher,
)
from tests.helpers.pretended_gpu.device import Device
from tests.helpers.score_runs import save_small_teacher

IMAGES = 6


def evaluation(folder: Path, device: str | None, precision: Precision) -> Evaluation:
    teacher = load_teacher(save_small_teacher(folder), device=device, precision=precision)
    ranker = load_ranker(str(folder / "ranker"), device=device)
    scorer = PartitionScorer(teacher, mask_ratio=RATIO, batch_size=VIEWS)
    dense = measure_dense(
        evaluation_images(IMAGES, ranker), scorer, masks="spread", aggregate="log", max_partitions=2
    )
    return evaluate_ranker(ranker, dense, teacher=teacher, baselines=("ridge", "attention"))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_it_measures_what_a_processor_measures(gpu: Device, tmp_path: Path, precision: Precision) -> None:
    ranker_of(tmp_path / "ranker", small_teacher(tmp_path), **made_up_fits())
    found, expected = evaluation(tmp_path, None, precision), evaluation(tmp_path, "cpu", "fp32")
    assert found.ranker.device.type == "cuda"
    assert found.notes == expected.notes
    tolerance = 1e-3 if precision == "fp32" else 0.2
    for name, agreement in expected.agreement.items():
        assert found.agreement[name].spearman.value == pytest.approx(agreement.spearman.value, abs=tolerance)
    assert found.reconstruction is not None
    assert expected.reconstruction is not None
    for name, curve in expected.reconstruction.items():
        ours, theirs = (
            [dataclasses.astuple(interval)[0] for interval in errors["pixel"]]
            for errors in (found.reconstruction[name].errors, curve.errors)
        )
        np.testing.assert_allclose(ours, theirs, rtol=10 * tolerance)
