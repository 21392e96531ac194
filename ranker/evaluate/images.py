"""The images that a ranker is measured on: centre crops out of shards, in memory, none that it was trained on."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from patchsieve.pipeline.errors import ContentError, UserError
from patchsieve.pipeline.images.decode import decode_image
from patchsieve.pipeline.shards.reader import Sample, ShardReader, image_fields_of, pick_image
from patchsieve.pipeline.shards.specs import Shard
from patchsieve.pipeline.units import counted
from patchsieve.ranker.batches.order import held_out
from patchsieve.ranker.model.api import center_patches
from patchsieve.ranker.model.checkpoint import LoadedRanker

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class EvaluationImages:
    """I images. `keys`: their sample keys; `contents`: SHA-256 of the shard of each; `patches`: uint8 `[I, L, P]`.

    `shards`: how many were read; `unreadable`: samples without an image that can be decoded.
    """

    keys: tuple[str, ...]
    contents: tuple[str, ...]
    patches: Tensor
    shards: int
    unreadable: int

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, places: Sequence[int]) -> EvaluationImages:
        """Some of the images, in the order given."""
        return dataclasses.replace(
            self,
            keys=tuple(self.keys[place] for place in places),
            contents=tuple(self.contents[place] for place in places),
            patches=self.patches[torch.as_tensor(places, dtype=torch.long)],
        )


def read_evaluation_images(
    shards: Sequence[Shard],
    ranker: LoadedRanker,
    *,
    image_field: str,
    limit: int,
    held_out_only: bool,
    unsorted: bool = False,
) -> EvaluationImages:
    """The first `limit` images of the shards, in their order; a shard that is begun is read to its end. `unsorted`: as
    `ShardReader` has it.

    That gives its SHA-256, which tells whether the ranker was trained on it: then only the images that training held
    out may be measured, which `held_out_only` takes. Raises UserError where they were not asked for, a ranker does
    not tell what it held out, or fewer than 2 images remain; InfrastructureError where the store fails.
    """
    taken = held_out_by(ranker) if held_out_only else lambda _key: True
    trained = trained_contents(ranker)
    keys: list[str] = []
    contents: list[str] = []
    patches: list[Tensor] = []
    unreadable = read = 0
    for shard in shards:
        if len(keys) == limit:
            break
        left = limit - len(keys)
        reader = _Images(shard, ranker, image_field=image_field, wanted=taken, limit=left, unsorted=unsorted)
        reader.read()
        if reader.sha256 in trained and not held_out_only:
            raise UserError(
                f"{ranker.name} was trained on {shard.name}: add --only-held-out to measure the images that it held "
                "out, or name other shards"
            )
        read += 1
        unreadable += reader.unreadable
        keys += reader.keys
        patches += reader.patches
        contents += [reader.sha256] * len(reader.keys)
    if len(keys) < 2:
        which = " that training held out" if held_out_only else ""
        raise UserError(
            f"{counted(len(keys), 'image')}{which} in {counted(read, 'shard')} ({unreadable} samples unreadable or "
            f"without an image field of {image_field}): measuring takes at least 2"
        )
    return EvaluationImages(
        keys=tuple(keys),
        contents=tuple(contents),
        patches=torch.stack(patches),
        shards=read,
        unreadable=unreadable,
    )


def trained_contents(ranker: LoadedRanker) -> set[str]:
    """SHA-256 of the shards that a ranker was trained on, as far as the identities of its tables tell."""
    return {match[0] for table in ranker.tables if (match := _DIGEST.match(table))}


def held_out_by(ranker: LoadedRanker) -> Callable[[str], bool]:
    """Whether the ranker's training held out an image of this key; UserError where the ranker does not tell."""
    settings = ranker.extra.get("training")
    try:
        share, seed = float(settings["held_out"]), int(settings["seed"])  # type: ignore[index]
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{ranker.name} does not tell which images its training held out: name other shards, not --only-held-out"
        ) from None
    return lambda key: held_out(key, share, seed)


class _Images:
    """Reads one shard; `keys`, `patches`, `sha256` and `unreadable` hold afterwards."""

    def __init__(
        self,
        shard: Shard,
        ranker: LoadedRanker,
        *,
        image_field: str,
        wanted: Callable[[str], bool],
        limit: int,
        unsorted: bool,
    ) -> None:
        self.keys: list[str] = []
        self.patches: list[Tensor] = []
        self.sha256 = ""
        self.unreadable = 0
        self._shard, self._config, self._field = shard, ranker.config, image_field
        self._wanted, self._limit, self._unsorted = wanted, limit, unsorted
        self._fields = set(image_fields_of(image_field))

    def read(self) -> None:
        """Read to the end; nothing is kept in memory once there are enough images."""
        with ShardReader(self._shard, keep_fields=self._keep, unsorted=self._unsorted) as reader:
            for item in reader:
                if len(self.keys) == self._limit:
                    continue
                if not isinstance(item, Sample):
                    self.unreadable += item.sample_key is not None
                elif self._wanted(item.key):
                    self._add(item)
            self.sha256 = reader.sha256

    def _keep(self, field: str) -> bool:
        return len(self.keys) < self._limit and field.lower() in self._fields

    def _add(self, sample: Sample) -> None:
        try:
            picked = pick_image(sample, self._field)
            image = None if picked is None else decode_image(picked[1])
        except ContentError:
            image = None
        if image is None:
            self.unreadable += 1
            return
        self.keys.append(sample.key)
        self.patches.append(center_patches(image, self._config))
