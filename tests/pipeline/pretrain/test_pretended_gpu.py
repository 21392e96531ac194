"""Pretraining on a pretended GPU, from its first step to what is measured at its end."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from patchsieve.pipeline.pretrain.config import PretrainConfig
from patchsieve.pipeline.pretrain.job import pretrain
from patchsieve.pipeline.teacher.checkpoint import read_teacher
from tests.helpers.photos import photo_samples, write_shard
from tests.helpers.pretended_gpu.device import Device
from tests.helpers.pretended_gpu.pretend import pretend_cuda


@pytest.fixture
def config(tmp_path: Path) -> PretrainConfig:
    return PretrainConfig(
        shards=(str(write_shard(tmp_path / "train.tar", photo_samples(4, seed=1, height=40, width=50))),),
        test=(str(write_shard(tmp_path / "held.tar", photo_samples(2, seed=2, height=40, width=50))),),
        out=str(tmp_path / "out"),
        image_size=32,
        patch_size=8,
        width=24,
        depth=1,
        heads=2,
        decoder_width=24,
        decoder_depth=1,
        decoder_heads=2,
        batch_size=4,
        steps=3,
        warmup_steps=1,
        report_every=1,
        precision="fp32",
    )


def told(config: PretrainConfig) -> dict[str, float]:
    """What the run says of its end; the curve lies beside it."""
    found: dict[str, float] = json.loads((Path(config.out) / "evaluation.json").read_text())["explained"]
    return found


def test_it_ends_where_a_processor_ends(config: PretrainConfig, tmp_path: Path) -> None:
    on_processor = dataclasses.replace(config, out=str(tmp_path / "cpu"))
    pretrain(on_processor, lambda line: None)
    said: list[str] = []
    with pretend_cuda():
        pretrain(config, said.append)
    assert ", cuda, fp32" in said[0]
    assert read_teacher(config.out).config.width == config.width
    np.testing.assert_allclose(list(told(config).values()), list(told(on_processor).values()), atol=1e-3)


def test_it_goes_on_from_its_checkpoint(config: PretrainConfig, gpu: Device) -> None:
    pretrain(config, lambda line: None)
    said: list[str] = []
    pretrain(dataclasses.replace(config, steps=4, resume=True), said.append)
    assert "resumed at step 3" in said
    assert np.isfinite(list(told(config).values())).all()


def test_bf16_by_autocast(config: PretrainConfig, gpu: Device) -> None:
    pretrain(dataclasses.replace(config, precision="bf16"), lambda line: None)
    assert np.isfinite(list(told(config).values())).all()
