"""Labelled images out of shards: centre crops in memory, and which of them are fitted to, chosen on and tested on.

Shape suffixes: N images, L patches of an image, P values of a patch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchsieve.pipeline.errors import ContentError, UserError
from patchsieve.pipeline.images.decode import decode_image
from patchsieve.pipeline.images.patches import patchify
from patchsieve.pipeline.images.views import apply_view, center_box
from patchsieve.pipeline.shards.reader import Fault, Sample, ShardReader, image_fields_of, pick_image
from patchsieve.pipeline.shards.specs import Shard
from patchsieve.pipeline.units import counted
from patchsieve.ranker.batches.order import held_out

_LONGEST_LABEL = 200
_LONGEST_JSON = 2**20


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LabelledPhotos:
    """N images with labels, of one split.

    `keys`: sample keys; `names`: labels; `files`: SHA-256 of each image file; `patches`: uint8 `[N, L, P]`, the centre
    crop; `groups`: what each shares with others, a tuple of every kind. `contents`: SHA-256 of the shards. `unlabelled`
    samples have no label, `unreadable` ones no image.
    """

    split: str
    keys: tuple[str, ...]
    names: tuple[str, ...]
    files: tuple[str, ...]
    patches: Tensor
    contents: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...] = ()
    unlabelled: int = 0
    unreadable: int = 0

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, wanted_N: NDArray[np.bool_]) -> LabelledPhotos:
        """Those of the images that are wanted, bool `[N]`."""
        if wanted_N.all():
            return self
        places = np.flatnonzero(wanted_N).tolist()
        return dataclasses.replace(
            self,
            keys=tuple(self.keys[place] for place in places),
            names=tuple(self.names[place] for place in places),
            files=tuple(self.files[place] for place in places),
            groups=tuple(tuple(kind[place] for place in places) for kind in self.groups),
            patches=self.patches[torch.tensor(places, dtype=torch.long)],
        )

    def labels(self, classes: Sequence[str]) -> NDArray[np.int64]:
        """The number of each image's class, int64 `[N]`."""
        number = {name: place for place, name in enumerate(classes)}
        return np.array([number[name] for name in self.names], np.int64)


def validation_split(photos: LabelledPhotos, share: float, seed: int) -> NDArray[np.bool_]:
    """Which images choices are made on, by a hash of their keys: bool `[N]`.

    Raises UserError where that leaves nothing to fit or to choose on, or one class alone.
    """
    chosen_N = np.array([held_out(key, share, seed) for key in photos.keys], np.bool_)
    fitted = {name for name, held in zip(photos.names, chosen_N, strict=True) if not held}
    if not chosen_N.any() or len(fitted) < 2:
        raise UserError(
            f"{len(photos)} train images at --validation {share:g}: {int(chosen_N.sum())} to choose on and "
            f"{len(fitted)} classes to fit; it takes at least 1 and 2"
        )
    return chosen_N


def class_names(photos: LabelledPhotos) -> list[str]:
    """All labels, numbers in their order."""
    names = set(photos.names)
    whole = all(name.isascii() and name.isdigit() for name in names)
    return sorted(names, key=lambda name: (int(name), name) if whole else (0, name))


def usable_test(
    test: LabelledPhotos, train: LabelledPhotos, classes: Collection[str]
) -> tuple[LabelledPhotos, list[str]]:
    """The test images that can be tested on, and notes on those that cannot: also in training, or of another class.

    Raises UserError where fewer than 2 remain.
    """
    seen = set(train.files)
    twice_N = np.array([file in seen for file in test.files], np.bool_)
    strange_N = np.array([name not in classes for name in test.names], np.bool_)
    notes = []
    if twice_N.any():
        notes.append(f"{int(twice_N.sum())} test images are train images too and are left out")
    if (strange_N & ~twice_N).any():
        count = int((strange_N & ~twice_N).sum())
        notes.append(f"{count} test images have a label that no train image has and are left out")
    usable = test.take(~(twice_N | strange_N))
    if len(usable) < 2:
        raise UserError(f"{len(usable)} test images are left ({'; '.join(notes)}): testing takes at least 2")
    return usable, notes


class LabelField:
    """Where labels are: `FIELD`, or `FIELD:KEY` for a key of a JSON field; `merged` gives the label of some others."""

    def __init__(self, rule: str, merged: Mapping[str, str]) -> None:
        field, _, self._key = rule.partition(":")
        self.rule, self.field, self._merged = rule, field.strip().lstrip(".").lower(), merged

    def label(self, sample: Sample) -> str | None:
        """The label of a sample, None where it has none that is a short text or a number."""
        data = next((data for name, data in sample.fields.items() if name.lower() == self.field), None)
        if data is None or len(data) > _LONGEST_JSON:
            return None
        try:
            value = json.loads(data)[self._key] if self._key else data.decode()
        except (ValueError, TypeError, KeyError, IndexError, RecursionError):
            return None
        if isinstance(value, bool) or not isinstance(value, str | int):
            return None
        text = str(value).strip()
        if not text or len(text) > _LONGEST_LABEL or not text.isprintable():
            return None
        return self._merged.get(text, text)


def read_photos(
    shards: Sequence[Shard],
    split: str,
    label: LabelField,
    *,
    grid: int,
    patch_size: int,
    image_field: str,
    limit: int | None,
    unsorted: bool = False,
    groups: Sequence[LabelField] = (),
) -> LabelledPhotos:
    """The first `limit` labelled images of the shards (None: all), in their order; shards are read to their ends.
    `unsorted`: as `ShardReader` has it; `groups`: fields of what images share.

    Raises UserError for a damaged archive, for an image without a group, and where fewer than 2 images are found;
    InfrastructureError where the store fails.
    """
    found = _Found(
        label,
        groups,
        grid=grid,
        patch_size=patch_size,
        image_field=image_field,
        limit=limit,
        unsorted=unsorted,
    )
    contents = []
    for shard in shards:
        if found.full:
            break
        contents.append(found.read(shard))
    if len(found.keys) < 2:
        raise UserError(
            f"{counted(len(found.keys), 'labelled image')} in the {split} shards ({found.unlabelled} samples without "
            f"a label in {label.rule}, {found.unreadable} without an image that can be read): it takes at least 2"
        )
    return LabelledPhotos(
        split=split,
        keys=tuple(found.keys),
        names=tuple(found.names),
        files=tuple(found.files),
        patches=torch.stack(found.patches),
        contents=tuple(contents),
        groups=tuple(zip(*found.groups, strict=True)) if groups else (),
        unlabelled=found.unlabelled,
        unreadable=found.unreadable,
    )


class _Found:
    """What was found so far."""

    def __init__(
        self,
        label: LabelField,
        groups: Sequence[LabelField],
        *,
        grid: int,
        patch_size: int,
        image_field: str,
        limit: int | None,
        unsorted: bool,
    ) -> None:
        self.keys: list[str] = []
        self.names: list[str] = []
        self.files: list[str] = []
        self.patches: list[Tensor] = []
        self.groups: list[tuple[str, ...]] = []
        self.unlabelled = self.unreadable = 0
        self._label, self._groups, self._field, self._limit = label, groups, image_field, limit
        self._size, self._patch_size = grid * patch_size, patch_size
        named = {rule.field for rule in (label, *groups)}
        self._fields, self._unsorted = {*named, *image_fields_of(image_field)}, unsorted

    @property
    def full(self) -> bool:
        return len(self.keys) == self._limit

    def read(self, shard: Shard) -> str:
        """Take what is wanted of a shard; returns the shard's SHA-256."""
        with ShardReader(
            shard, keep_fields=lambda field: field.lower() in self._fields, unsorted=self._unsorted
        ) as reader:
            for item in reader:
                if isinstance(item, Fault):
                    if item.stage == "archive":
                        raise UserError(
                            f"{shard.name} is a damaged archive ({item.reason}): mend or leave it out"
                        )
                    self.unreadable += 1
                elif not self.full:
                    self._add(item)
            return reader.sha256

    def _add(self, sample: Sample) -> None:
        name = self._label.label(sample)
        if name is None:
            self.unlabelled += 1
            return
        try:
            picked = pick_image(sample, self._field)
            if picked is None:
                raise ContentError("no image field")
            image = decode_image(picked[1])
        except ContentError:
            self.unreadable += 1
            return
        self.groups.append(tuple(_group(rule, sample) for rule in self._groups))
        box = center_box(*image.shape[1:], size=self._size)
        self.keys.append(sample.key)
        self.names.append(name)
        self.files.append(hashlib.sha256(picked[1]).hexdigest())
        self.patches.append(patchify(apply_view(image, box, self._size)[None], self._patch_size)[0])


def _group(rule: LabelField, sample: Sample) -> str:
    """What a sample shares with others."""
    found = rule.label(sample)
    if found is None:
        raise UserError(f"--group {rule.rule}: sample {sample.key} has no such field, or no short text in it")
    return found
