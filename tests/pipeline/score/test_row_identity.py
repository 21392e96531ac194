"""What changes a score changes the identity of its row: every field of a teacher, every option of a run."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from patchsieve.pipeline.row_config import Metric
from patchsieve.pipeline.score.config import ScoreConfig
from patchsieve.pipeline.score.shard import teacher_record
from patchsieve.pipeline.scoring.scorer import Scorer
from patchsieve.pipeline.tables.schema import row_identity
from patchsieve.pipeline.teacher.architecture import TeacherConfig
from patchsieve.pipeline.teacher.build import build_teacher
from patchsieve.pipeline.teacher.checkpoint import TeacherFile, weights_digest
from tests.helpers.teachers import SMALL, random_teacher

# Where things are and how a run goes about its work; a file's `output_space` decides where the option says auto.
NOT_IN_ROWS = {
    *(
        "shards",
        "out",
        "teacher",
        "output_space",
        "root",
        "limit_shards",
        "salvage",
        "redo_errors",
        "unsorted",
        "max_bad",
    ),
    *(
        "gpus_per_actor",
        "cpus_per_actor",
        "max_actors",
        "head_node",
        "decode_pixels",
        "batch_size",
        "compile",
        "precision",
    ),
    *("stall_timeout", "start_timeout", "part", "verify_content", "price_per_hour", "log_format", "dry_run"),
}
OTHER: dict[str, Any] = {
    "views": "4:8",
    "mask_ratio": 0.8,
    "removal": "encoder",
    "metric": "l2",
    "estimator": "frozen",
    "frozen_tokens": 7,
    "crop": "center",
    "masks": "uniform",
    "store": "none",
    "seed": 1,
    "sample": 0.5,
    "image_field": "png",
}
# Values that leave the shapes of all weights as they are: other shapes are other weights.
SAME_SHAPES: dict[str, Any] = {
    "heads": 8,
    "decoder_heads": 4,
    "norm_eps": 1e-2,
    "output_space": "normalised",
}


def identity_of(**options: Any) -> str:
    config = ScoreConfig(shards=("a.tar",), out="out", **options)
    return row_identity(config.rows(size=48, precision="fp32", decoder="any"), "digest")


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(ScoreConfig)])
def test_every_option_of_a_run_is_in_the_identity_or_in_no_row(field: str) -> None:
    assert (field in NOT_IN_ROWS) != (field in OTHER)
    if field in OTHER:
        base = {"estimator": "frozen"} if field == "frozen_tokens" else {}
        assert identity_of(**{**base, field: OTHER[field]}) != identity_of(**base)


def scored(file: TeacherFile, metric: Metric) -> torch.Tensor:
    scorer = Scorer(build_teacher(file), mask_ratio=0.75, removal="decoder", metric=metric, batch_size=2)
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, 36, 192), dtype=torch.uint8, generator=random)
    visible = torch.stack([torch.randperm(36, generator=random)[:9].sort().values for _ in range(2)])
    return scorer.score(pixels, visible)


@pytest.mark.parametrize("metric", ["l1", "l2", "ssim", "psnr"])
def test_every_field_of_a_teacher_is_in_the_identity_or_changes_no_score(metric: Metric) -> None:
    state = random_teacher(SMALL).state_dict()
    rows = ScoreConfig(shards=("a",), out="b", metric=metric).rows(size=48, precision="fp32", decoder="any")
    found = {}
    for name, value in {"": None, **SAME_SHAPES}.items():
        config = dataclasses.replace(SMALL, **({name: value} if name else {}))
        file = TeacherFile(config, "small", weights_digest(config, state), None, state)
        record = teacher_record(file)
        identity = row_identity(rows, record.digest, record.output_space)
        found[name] = identity, scored(file, metric)
    identity, scores = found.pop("")
    for name, (other_identity, other_scores) in found.items():
        assert other_identity != identity or torch.equal(scores, other_scores), name


def test_every_other_field_of_a_teacher_shows_in_the_shapes() -> None:
    others = {field.name for field in dataclasses.fields(TeacherConfig)} - SAME_SHAPES.keys()
    assert others == {
        "image_size",
        "patch_size",
        "width",
        "depth",
        "decoder_width",
        "decoder_depth",
        "mlp_ratio",
    }
