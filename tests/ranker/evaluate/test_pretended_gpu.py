"""An evaluation whose teacher and ranker are on a pretended GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from patchsieve.pipeline.row_config import Precision
from patchsieve.pipeline.scoring.api import load_teacher
from patchsieve.ranker.evaluate.dense import measure_dense
from patchsieve.ranker.evaluate.measure import Evaluation, evaluate_ranker
from patchsieve.ranker.evaluate.partitions import PartitionScorer
from patchsieve.ranker.evaluate.reconstruction import mask_errors
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
from tests.helpers.teachers import SMALL

IMAGES = 2


def evaluation(folder: Path, device: str | None) -> Evaluation:
    teacher = load_teacher(save_small_teacher(folder), device=device, precision="fp32")
    ranker = load_ranker(str(folder / "ranker"), device=device)
    scorer = PartitionScorer(teacher, mask_ratio=RATIO, batch_size=VIEWS)
    images = evaluation_images(IMAGES, ranker)
    dense = measure_dense(images, scorer, masks="spread", aggregate="log", max_partitions=2)
    names = ("ridge", "attention")
    return evaluate_ranker(ranker, dense, teacher=teacher, baselines=names, reconstruct=False)


def test_it_measures_what_a_processor_measures(gpu: Device, tmp_path: Path) -> None:
    ranker_of(tmp_path / "ranker", small_teacher(tmp_path), **made_up_fits())
    found, expected = evaluation(tmp_path, None), evaluation(tmp_path, "cpu")
    assert found.ranker.device.type == "cuda"
    np.testing.assert_allclose(found.dense.dense, expected.dense.dense, rtol=1e-3, atol=1e-3)
    for name, agreement in expected.agreement.items():
        assert found.agreement[name].spearman.value == pytest.approx(agreement.spearman.value, abs=0.01)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_reconstructions_are_as_good(gpu: Device, tmp_path: Path, precision: Precision) -> None:
    path = save_small_teacher(tmp_path)
    patches = torch.randint(0, 256, (3, SMALL.positions, SMALL.patch_values), dtype=torch.uint8)
    keep = np.random.default_rng(0).random((3, SMALL.positions)).argsort(1) < 9
    found, expected = (
        mask_errors(load_teacher(path, device=device, precision=asked), patches, keep)
        for device, asked in ((None, precision), ("cpu", "fp32"))
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4 if precision == "fp32" else 0.02)
