"""Photos in folders, the shards that the demo packs them into, and the images in those."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from patchsieve.pipeline.images.decode import decode_image
from patchsieve.pipeline.pictures.demo_photos import PackedPhotos, find_photos, pack_photos
from patchsieve.pipeline.row_config import IMAGE_FIELDS
from patchsieve.pipeline.shards.reader import Sample, ShardReader, pick_image
from patchsieve.pipeline.shards.specs import expand_shards


def write_photos(folder: Path, names: dict[str, bytes]) -> Path:
    for name, data in names.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def samples_of(shards: Iterable[str]) -> dict[str, Tensor]:
    """Decoded images by key, of shards as the score job reads them."""
    found = {}
    for shard in expand_shards(list(shards)):
        with ShardReader(shard) as reader:
            for sample in reader:
                assert isinstance(sample, Sample)
                picked = pick_image(sample, IMAGE_FIELDS)
                assert picked is not None
                assert sample.key not in found
                found[sample.key] = decode_image(picked[1])
        assert not reader.damaged
    return found


def pack(folder: Path, out: Path, samples: int = 80) -> PackedPhotos:
    return pack_photos(find_photos(str(folder)), str(out), samples=samples, run_id="run")
