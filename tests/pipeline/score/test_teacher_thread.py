"""The teacher's thread: it has the next batch before anybody asks for the scores of the last one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from patchsieve.pipeline.compute.launch import Launched, Stamp
from patchsieve.pipeline.score.teacher_thread import Submitted, TeacherThread
from patchsieve.pipeline.scoring.scorer import Scorer
from tests.helpers.photos import photo_samples, write_shard
from tests.helpers.score_runs import local_scoring, rows_of, save_small_teacher, score_config


class SlowEnd(Stamp):
    """The end of a batch on a device that is slow: the scores are there only once somebody has waited for it."""

    def __init__(self, scores: Tensor, told: list[str]) -> None:
        super().__init__(torch.device("cpu"))
        self.late, self.told = scores.numpy(), told
        self.ready = self.late.copy()
        self.late.fill(np.nan)

    def wait(self) -> None:
        self.told.append("wait")
        self.late[:] = self.ready


def test_a_batch_is_handed_over_before_the_last_one_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = write_shard(tmp_path / "photos.tar", photo_samples(6, height=48, width=48))
    teacher = save_small_teacher(tmp_path)
    with local_scoring(score_config([shard], tmp_path / "plain", teacher)) as (scoring, todo):
        expected = scoring.score(todo[0])
    compute, hand_over = Scorer.launch, TeacherThread.submit
    told: list[str] = []

    def launch(scorer: Scorer, *batch: Tensor) -> Launched:
        done = compute(scorer, *batch)
        return Launched(done.scores, done.began, SlowEnd(done.scores, told))

    def submit(thread: TeacherThread, *batch: Tensor) -> Submitted:
        told.append("submit")
        return hand_over(thread, *batch)

    monkeypatch.setattr(Scorer, "launch", launch)
    monkeypatch.setattr(TeacherThread, "submit", submit)
    with local_scoring(score_config([shard], tmp_path / "late", teacher)) as (scoring, todo):
        late = scoring.score(todo[0])
    assert told == ["submit", "submit", "wait", "submit", "wait", "wait"]
    assert (late.rows, late.faults) == (expected.rows, {})
    assert rows_of(tmp_path / "late") == rows_of(tmp_path / "plain")
