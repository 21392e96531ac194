"""Train and prune on Ray, from an object store to an object store, by workers with credentials of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from patchsieve.pipeline import storage
from patchsieve.pipeline.runs.status import read_status
from patchsieve.ranker.model.checkpoint import load_ranker
from patchsieve.ranker.train.progress import read_curve
from tests.helpers.checkout import ROOT, python_path
from tests.helpers.photos import photo_samples, write_shard
from tests.helpers.prune_runs import prune_config, prune_here, save_small_ranker
from tests.helpers.score_runs import save_small_teacher, score_config, score_here
from tests.helpers.servers import s3_for_this_process

# Commands one after the other on one Ray, whose workers have another key; each prints its exit code.
CODE = """
import json, sys
import ray
from patchsieve.jobs import prune, train
workers = {"env_vars": {"AWS_ACCESS_KEY_ID": "worker-key"}}
ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=10**8, runtime_env=workers)
for name, *arguments in json.loads(sys.argv[1]):
    try:
        {"train": train, "prune": prune}[name].main(arguments)
    except SystemExit as ended:
        print("exit code", ended.code, flush=True)
"""
# Tables without pixels: the workers read the photos, too.
TRAIN = """
    --context full --model vit_tiny_patch16_224 --depth 1 --head token --batch-size 16 --warmup-views 2 --held-out 0.2
    --measure-every 4
"""
PRUNE = "--batch-size 4 --gpus-per-actor 0 --cpus-per-actor 1 --max-actors 1"


@pytest.mark.ray
@pytest.mark.slow
def test_train_resume_and_prune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_for_this_process(monkeypatch) as s3:
        shard = write_shard(tmp_path / "in" / "0.tar", photo_samples(40, 0, height=80, width=100))
        storage.commit_file(shard, s3.url("photos/0.tar"), run_id="r")
        score_here(
            score_config([s3.url("photos")], s3.url("labels"), save_small_teacher(tmp_path), store="none")
        )
        ranker = save_small_ranker(tmp_path)
        given = ["--images", s3.url("photos"), *TRAIN.split()]
        train = ["train", s3.url("labels"), "--out", s3.url("ranker"), *given, "--views-per-image"]
        commands = [
            [*train, "4"],
            [*train, "8", "--resume"],
            ["prune", s3.url("photos"), "--ranker", ranker, "--out", s3.url("pruned"), *PRUNE.split()],
        ]
        s3.access_keys.clear()
        done = subprocess.run(
            [sys.executable, "-c", CODE, json.dumps(commands)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": python_path(ROOT)},
            capture_output=True,
            text=True,
            check=False,
            timeout=800,
        )
        told = done.stdout + done.stderr
        assert done.stdout.count("exit code 0") == 3, told
        assert s3.access_keys == {"test-access-key", "worker-key"}
        assert "test-secret-key" not in told

        # The second run went on from the checkpoint of the first, and did not measure its step again.
        assert [point["step"] for point in read_curve(s3.url("ranker"))] == ["8", "16"]
        assert load_ranker(s3.url("ranker/last")).extra["step"] == 16
        assert told.count("step 8  ") == 1
        prune_here(prune_config([shard], tmp_path / "here", ranker))
        expected = (tmp_path / "here" / "shards" / "0.tar").read_bytes()
        assert storage.read_bytes(s3.url("pruned/shards/0.tar")) == expected
        s3.asked.clear()
        status = read_status(s3.url("pruned"))
        assert (status.done, status.missing, status.failed, status.owner) == (1, 0, 0, None)
        # The run kept what the index that it wrote says.
        assert s3.count("GET pruned/cache/") > 0
        assert s3.count("GET pruned/index/") == 0
