"""The ranker's half of the demo: training, measuring, pruning, and reading a batch into a NaFlexVit.

The ranker has two blocks; its part takes well under a minute on one processor.

Shape suffixes: N images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq
import timm
import torch

from patchsieve.pipeline import storage
from patchsieve.pipeline.pruned.collate import collate_naflex, place_by_coordinate
from patchsieve.pipeline.pruned.dataset import PrunedDataset
from patchsieve.pipeline.pruned.index import INDEX, SHARDS_FOLDER
from patchsieve.pipeline.shards.reader import ShardReader
from patchsieve.pipeline.units import byte_size
from patchsieve.ranker.evaluate.config import EvaluateConfig
from patchsieve.ranker.prune.config import PruneConfig
from patchsieve.ranker.prune.request import PruneRequest, make_prune_request
from patchsieve.ranker.prune.sample import Prepared, prepare_sample
from patchsieve.ranker.train.config import TrainConfig

BATCH = 8
CLASSES = 10


def demo_pruning(shards: Sequence[str], ranker: str, out: str, *, max_actors: int) -> PruneConfig:
    """Half of the patches of each image, packed."""
    return PruneConfig(shards=tuple(shards), ranker=ranker, out=out, keep=0.5, max_actors=max_actors)


def saved_lines(config: PruneConfig) -> list[str]:
    """Bytes and tokens of the pruned images before and after, and the bytes of a plain re-encode between."""
    request = make_prune_request(config)
    before = after = kept = images = 0
    for shard in request.shards:
        data = storage.read_bytes(storage.join(config.out, INDEX.folder, f"{shard.id}.parquet"))
        table = pq.read_table(pa.BufferReader(data), columns=["bytes_before", "bytes_after", "kept"])
        for row in table.to_pylist():
            if row["kept"] is not None:
                images += 1
                kept += row["kept"]
                before += row["bytes_before"]
                after += row["bytes_after"]
    plain = sum(_plain_bytes(request))
    size, tokens = request.spec.size, request.spec.grid**2
    return [
        f"bytes    {byte_size(before)} as the photos are, {byte_size(plain)} as whole crops of {size} px in the same "
        f"codec, {byte_size(after)} pruned ({after / plain:.0%} of the crops)",
        f"tokens   {tokens} of an image before, {kept / images:.0f} after",
    ]


def reading_line(config: PruneConfig) -> str:
    """A batch of the pruned shards read back into a small NaFlexVit of random weights."""
    samples = list(islice(PrunedDataset(storage.join(config.out, SHARDS_FOLDER)), BATCH))
    grid, block = samples[0].grid, samples[0].block
    batch = collate_naflex(samples, patch_size=block)
    model = timm.create_model(
        "naflexvit_base_patch16_gap",
        patch_size=block,
        embed_dim=192,
        depth=4,
        num_heads=3,
        num_classes=CLASSES,
        pos_embed_grid_size=(grid, grid),
    )
    with torch.inference_mode():
        logits = place_by_coordinate(model).eval()(batch)
    return (
        f"reading  {list(batch['patches'].shape)} patches, {int(batch['patch_valid'].sum())} of them kept ones, into "
        f"timm's NaFlexVit (small, untrained): logits {list(logits.shape)}"
    )


def _plain_bytes(request: PruneRequest) -> Iterator[int]:
    """Bytes of each whole crop, encoded as the pruned images are."""
    codec = request.spec.codec
    assert codec is not None
    for shard in request.shards:
        with ShardReader(shard) as reader:
            for item in reader:
                image = prepare_sample(item, request.spec)
                if isinstance(image, Prepared) and image.pixels is not None:
                    yield len(codec.encode(image.pixels))


FEWEST_ROWS = 60
"""With fewer there is no batch to train on beside what is held out."""


def demo_training(labels: str, out: str) -> TrainConfig:
    """Goes on with, or leaves as it is, what an earlier demo trained in `out`."""
    return TrainConfig(
        tables=(labels,),
        out=out,
        model="vit_tiny_patch16_224",
        depth=2,
        head="token",
        flip=True,
        views_per_image=220,
        warmup_views=22,
        measure_every=55,
        batch_size=32,
        base_lr=8e-3,
        clip=1.0,
        held_out=0.2,
        resume=True,
    )


def demo_evaluation(shards: Sequence[str], ranker: str, teacher: str) -> EvaluateConfig:
    """Two partitions of a few samples held out: enough to see a ranker beside the baselines."""
    return EvaluateConfig(
        shards=tuple(shards),
        ranker=ranker,
        teacher=teacher,
        only_held_out=True,
        limit_images=8,
        masks="spread",
        aggregate="log",
        max_partitions=2,
        reconstruct=False,
    )
