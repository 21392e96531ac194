"""An actor's work on a pretended GPU: batches ahead, shards to tables, the estimate of a dry run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from patchsieve.pipeline.cluster.dry_run import DryRun
from patchsieve.pipeline.cluster.places import Place
from patchsieve.pipeline.cluster.slots import NodeResources
from patchsieve.pipeline.output.folder import OutputFolder
from patchsieve.pipeline.output.owner import Owner
from patchsieve.pipeline.score import estimate
from patchsieve.pipeline.score.messages import WorkOrder
from patchsieve.pipeline.score.request import ScoreRequest, make_request
from patchsieve.pipeline.score.teacher_thread import TeacherThread
from patchsieve.pipeline.score.worker import ScoringWorker
from patchsieve.pipeline.scoring.scorer import Scorer
from patchsieve.pipeline.tables.schema import SCORES
from tests.helpers.photos import photo_samples, write_shard
from tests.helpers.pretended_gpu.device import Device
from tests.helpers.pretended_gpu.ledger import Crossings
from tests.helpers.pretended_gpu.pretend import pretend_cuda
from tests.helpers.score_runs import rows_of, save_small_teacher, score_config
from tests.pipeline.scoring.cases import RATIO, SMALL, make_teacher, make_views

IMAGES = 6  # of two views each, in batches of four


def test_a_batch_is_queued_while_the_one_before_is_computed(gpu: Device) -> None:
    scorer = Scorer(make_teacher(), mask_ratio=RATIO, device="cuda", batch_size=3)
    thread = TeacherThread(scorer)
    _, pixels, visible = make_views(SMALL, 3, scorer.visible)
    expected = thread.submit(pixels, visible, None).result().scores
    gpu.forget()
    ahead = [thread.submit(pixels, visible, None) for _ in range(4)]
    launched = [submitted._launch.result()[1] for submitted in ahead]
    assert not gpu.ledger.of("wait"), gpu.ledger.culprits("wait")
    assert all(batch.scores.isnan().all() for batch in launched), "scores before anybody waited for them"
    scored = [submitted.result() for submitted in ahead]
    assert all(np.array_equal(batch.scores, expected) for batch in scored)
    assert gpu.ledger.crossings() == Crossings(uploads=4 * 3, downloads=4, waits=4)


def a_request(folder: Path, device: str) -> ScoreRequest:
    shards = [
        write_shard(folder / f"{seed}.tar", photo_samples(IMAGES, seed, height=60, width=70))
        for seed in (1, 2)
    ]
    return make_request(score_config(shards, folder / device, save_small_teacher(folder), compile=False))


def score_both(
    request: ScoreRequest, gpus: tuple[str, ...] = (), between: Callable[[], None] = lambda: None
) -> ScoringWorker:
    """Both shards as an actor scores them."""
    out, (first, second) = request.config.out, request.shards
    OutputFolder(out, SCORES, run_id="r").adopt_config(request.fields(request.rows("fp32")), other={})
    owner = Owner(out, "r")
    owner.acquire()
    worker = ScoringWorker(request.teacher, Place(host="host", node_id="n" * 16, gpus=gpus))
    order = WorkOrder(
        out=out,
        run_id="r",
        actor="a",
        rows=request.rows("fp32"),
        unsorted=False,
        batch_size=4,
        decode_threads=2,
        decode_pixels=10**8,
        compile=False,  # takes a real one
        log_format="text",
    )
    assert worker.configure(order, first) == 4
    assert worker.score(first).rows == 2 * IMAGES
    between()
    assert worker.score(second).rows == 2 * IMAGES
    owner.release()
    return worker


def test_shards_are_scored_as_on_a_processor(tmp_path: Path) -> None:
    score_both(a_request(tmp_path, "cpu"))
    with pretend_cuda() as gpu:
        worker = score_both(a_request(tmp_path, "cuda"), ("0",), gpu.forget)
        batches = 2 * IMAGES // 4
        assert gpu.ledger.crossings() == Crossings(uploads=3 * batches, downloads=batches, waits=batches), (
            gpu.ledger.culprits("upload", "wait")
        )
        progress = worker.progress()
        assert progress is not None
        assert progress.gpu_bytes > 0
        assert worker.device_name == "cuda Pretended GPU"
    found, expected = (rows_of(tmp_path / device) for device in ("cuda", "cpu"))
    assert found.keys() == expected.keys()
    for key, row in expected.items():
        np.testing.assert_allclose(found[key].pop("score"), row.pop("score"), rtol=1e-3)
        assert found[key] == row


def test_a_dry_run_estimates(tmp_path: Path, gpu: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "PROBE_S", 0.0)
    request = a_request(tmp_path, "cuda")
    request = dataclasses.replace(request, config=dataclasses.replace(request.config, gpus_per_actor=1.0))
    run = DryRun(nodes=[NodeResources(cpus=4, gpus=1)])
    lines = estimate.estimate(request, run).lines(request)
    assert any("on Pretended GPU of this machine" in line for line in lines)
