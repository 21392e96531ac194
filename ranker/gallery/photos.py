"""Photos out of shards: crops of the samples that a table, an index or the user names."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from patchsieve.pipeline.errors import ContentError, DamagedFileError, UserError
from patchsieve.pipeline.images.decode import decode_image
from patchsieve.pipeline.images.views import ViewBox, apply_view
from patchsieve.pipeline.pictures.rows import as_picture
from patchsieve.pipeline.pictures.sheet import Pixels
from patchsieve.pipeline.row_config import IMAGE_FIELDS
from patchsieve.pipeline.shards.reader import Sample, ShardReader, pick_image
from patchsieve.pipeline.shards.specs import Shard, expand_shards


class Photos:
    """The shards that were given, by the names that tables and indexes know them by."""

    def __init__(self, specs: Sequence[str], *, root: str | None, unsorted: bool = False) -> None:
        """`specs`: shards as every command takes them; `unsorted`: as `ShardReader` has it. Raises UserError where
        there are none.
        """
        self._unsorted = unsorted
        self.shards = expand_shards(specs, root=root)
        self._by_name = {shard.name: shard for shard in self.shards}
        bases = [shard.name.rpartition("/")[2] for shard in self.shards]
        self._by_base = {
            base: shard for base, shard in zip(bases, self.shards, strict=True) if bases.count(base) == 1
        }

    def cut(
        self, name: str, boxes: Mapping[str, ViewBox], *, size: int, shard_bytes: int, of: str
    ) -> dict[str, Pixels]:
        """Crops of samples of the shard of this name, uint8 `[size, size, 3]` by key; none where it was not given.

        Raises UserError for a shard of another size in bytes than the one that `of` was made from.
        """
        shard = self._by_name.get(name) or self._by_base.get(name.rpartition("/")[2])
        if shard is None:
            return {}
        if shard.size not in (None, shard_bytes):
            raise UserError(
                f"{shard.name} has {shard.size} bytes, the shard that {of} was made from had {shard_bytes}"
            )
        found: dict[str, Pixels] = {}
        for key, image in self.images(shard):
            if key in boxes:
                box, (height, width) = boxes[key], image.shape[1:]
                bottom, right = box.top + box.height, box.left + box.width
                if not (0 <= box.top < bottom <= height and 0 <= box.left < right <= width):
                    raise DamagedFileError(
                        f"{of} is damaged: it has a crop outside of a photo of {shard.name}"
                    )
                found[key] = as_picture(apply_view(image, box, size))
                if len(found) == len(boxes):
                    break
        return found

    def images(self, shard: Shard, *, key: str | None = None) -> Iterator[tuple[str, Tensor]]:
        """The images of a shard that can be read, or that of one key alone, uint8 `[3, H, W]` with their keys."""
        with ShardReader(shard, unsorted=self._unsorted) as reader:
            samples = (item for item in reader if isinstance(item, Sample))
            for sample in (
                samples if key is None else itertools.islice((s for s in samples if s.key == key), 1)
            ):
                try:
                    picked = pick_image(sample, IMAGE_FIELDS)
                    if picked is not None:
                        yield sample.key, decode_image(picked[1])
                except ContentError:
                    continue  # score and prune tell of it
