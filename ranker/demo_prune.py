"""The end of the demo: its shards pruned, what that saves, and a batch of them read into a NaFlexVit.

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
from patchsieve.pipeline.progress import byte_size
from patchsieve.pipeline.pruned import PrunedDataset, collate_naflex, place_by_coordinate
from patchsieve.pipeline.pruned_index import INDEX_FOLDER, SHARDS_FOLDER
from patchsieve.pipeline.shards import ShardReader
from patchsieve.ranker.prune_config import PruneConfig
from patchsieve.ranker.prune_feed import Prepared, prepare
from patchsieve.ranker.prune_plan import PruneRequest, make_request

BATCH = 8
CLASSES = 10


def demo_pruning(shards: Sequence[str], ranker: str, out: str, *, max_actors: int) -> PruneConfig:
    """Half of the patches of each image, packed."""
    return PruneConfig(shards=tuple(shards), ranker=ranker, out=out, keep=0.5, max_actors=max_actors)


def saved_lines(config: PruneConfig) -> list[str]:
    """Bytes and tokens of the pruned images before and after, and the bytes of a plain re-encode between."""
    request = make_request(config)
    before = after = kept = images = 0
    for shard in request.shards:
        data = storage.read_bytes(storage.join(config.out, INDEX_FOLDER, f"{shard.id}.parquet"))
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
    batch = collate_naflex(samples)
    grid = samples[0].grid
    name = "naflexvit_base_patch16_gap"
    model = timm.create_model(
        name, embed_dim=192, depth=4, num_heads=3, num_classes=CLASSES, pos_embed_grid_size=(grid, grid)
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
                image = prepare(item, request.spec)
                if isinstance(image, Prepared) and image.pixels is not None:
                    yield len(codec.encode(image.pixels))
