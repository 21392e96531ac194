"""Photos of shards in memory with their keys, for benchmarks of rankers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from patchsieve.pipeline.images.decode import decode_image
from patchsieve.pipeline.row_config import IMAGE_FIELDS
from patchsieve.pipeline.shards.reader import Sample, ShardReader, pick_image
from patchsieve.pipeline.shards.specs import expand_shards
from patchsieve.ranker.evaluate.images import EvaluationImages
from patchsieve.ranker.model.api import center_patches
from patchsieve.ranker.model.ranker import RankerConfig


def keyed_photos(specs: Sequence[str], per_shard: int | None = None) -> list[tuple[str, str, Tensor]]:
    """(sample key, SHA-256 of its shard, pixels uint8 `[3, H, W]`) of the first photos of each shard."""
    found = []
    for shard in expand_shards(specs):
        with ShardReader(shard) as reader:
            samples = [item for item in reader if isinstance(item, Sample)]
        for sample in samples[:per_shard]:
            picked = pick_image(sample, IMAGE_FIELDS)
            if picked is not None:
                found.append((sample.key, reader.sha256, decode_image(picked[1])))
    return found


def held_out_images(specs: Sequence[str], config: RankerConfig) -> EvaluationImages:
    """All photos of some shards as centre crops."""
    photos = keyed_photos(specs)
    return EvaluationImages(
        keys=tuple(key for key, _, _ in photos),
        contents=tuple(content for _, content, _ in photos),
        patches=torch.stack([center_patches(image, config) for _, _, image in photos]),
        shards=len(specs),
        unreadable=0,
    )
