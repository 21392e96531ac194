"""The teacher's thread on a real GPU. Imports nothing that such a machine may lack: neither Ray nor tyro."""

from __future__ import annotations

import pytest
import torch

from patchsieve.pipeline.score.teacher_thread import TeacherThread
from patchsieve.pipeline.scoring.scorer import Scorer
from tests.helpers.teachers import SMALL, random_teacher

VISIBLE = 3


@pytest.mark.gpu
def test_a_gpu_is_given_batches_ahead() -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (8, SMALL.positions, SMALL.patch_values)
    pixels = [torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for _ in range(5)]
    visible = torch.arange(VISIBLE).expand(8, -1)
    scorer = Scorer(random_teacher(SMALL), device="cuda", batch_size=8)
    expected = [scorer.score(batch, visible) for batch in pixels]
    thread = TeacherThread(scorer)
    submitted = [thread.submit(batch, visible, None) for batch in pixels]
    found = [batch.result() for batch in submitted]
    for scored, scores in zip(found, expected, strict=True):
        assert scored.scores.tolist() == scores.tolist()
        assert scored.worked_s > 0
        assert scored.waited_s >= 0
