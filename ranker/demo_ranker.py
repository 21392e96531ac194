"""What the demo trains and measures: a ranker of two blocks, in well under a minute on one processor."""

from __future__ import annotations

from collections.abc import Sequence

from patchsieve.ranker.evaluate_config import EvaluateConfig
from patchsieve.ranker.train_config import TrainConfig

FEWEST_SAMPLES = 30
"""With fewer there is nothing to hold out."""


def demo_training(labels: str, out: str) -> TrainConfig:
    """Goes on with, or leaves as it is, what an earlier demo trained in `out`."""
    return TrainConfig(
        tables=(labels,),
        out=out,
        model="vit_tiny_patch16_224",
        depth=2,
        head="token",
        flip=True,
        epochs=220,
        warmup_epochs=22,
        measure_every=55,
        batch_size=32,
        base_lr=8e-3,
        clip=1.0,
        held_out=0.2,
        resume=True,
    )


def demo_evaluation(shards: Sequence[str], ranker: str, teacher: str) -> EvaluateConfig:
    """Four partitions of a few samples held out: enough to see a ranker beside the baselines."""
    return EvaluateConfig(
        shards=tuple(shards),
        ranker=ranker,
        teacher=teacher,
        held_out=True,
        limit_images=12,
        masks="spread",
        aggregate="log",
        max_partitions=4,
        reconstruct=False,
    )
