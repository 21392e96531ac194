"""Photos that scenes are made of: objects by class and backgrounds, from labelled shards."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks._scene_maker import Photo
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.images.header import read_header
from patchsieve.pipeline.randomness import KeyedRandom
from patchsieve.pipeline.row_config import IMAGE_FIELDS
from patchsieve.pipeline.shards.reader import Sample, ShardReader, pick_image
from patchsieve.pipeline.shards.specs import expand_shards

VALIDATION = 0.2
"""Share of the train photos whose scenes choose; the head is fitted on the others."""


@dataclasses.dataclass(frozen=True)
class Material:
    """What the scenes of a split are made of."""

    objects: Mapping[str, Sequence[Photo]]
    backgrounds: Sequence[Photo]


def read_photos(specs: Sequence[str]) -> Iterator[Photo]:
    """All photos of shards, with their `cls` as label."""
    for shard in expand_shards(specs):
        with ShardReader(shard) as reader:
            for item in reader:
                picked = pick_image(item, IMAGE_FIELDS) if isinstance(item, Sample) else None
                if picked is None or not isinstance(item, Sample):
                    continue
                header = read_header(picked[1])
                if header is None:
                    raise UserError(f"{item.key} of {shard.url} is no image that can be read")
                label = item.fields.get("cls", b"").decode()
                yield Photo(item.key, label, picked[1], min(header.height, header.width))


def read_material(
    objects: Sequence[str], backgrounds: Sequence[str], names: Sequence[str], merged: Mapping[str, str]
) -> Material:
    """Objects are photos with a label; photos without one, and all of `backgrounds`, are backgrounds.

    `merged`: labels that count as another one.
    """
    by_label: dict[str, list[Photo]] = defaultdict(list)
    grounds = list(read_photos(backgrounds)) if backgrounds else []
    for photo in read_photos(objects):
        if photo.label == "":
            grounds.append(photo)
            continue
        name = names[int(photo.label)]
        by_label[merged.get(name, name)].append(photo)
    return Material(
        {name: sorted(by_label[name], key=lambda one: one.key) for name in sorted(by_label)}, grounds
    )


def split_material(material: Material, seed: int) -> tuple[Material, Material]:
    """Train photos for the head, and those for validation: a share of objects and backgrounds, by a hash of the key."""

    def chosen(photo: Photo) -> bool:
        return bool(KeyedRandom(seed, photo.key, "scenes validation").uniform(1)[0] < VALIDATION)

    parts = []
    for wanted in (False, True):
        objects = {
            name: kept
            for name, photos in material.objects.items()
            if (kept := [photo for photo in photos if chosen(photo) == wanted])
        }
        parts.append(Material(objects, [one for one in material.backgrounds if chosen(one) == wanted]))
    return parts[0], parts[1]


def class_names(path: Path) -> list[str]:
    """Names of labels from a JSON list."""
    names = json.loads(path.read_text())
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path} holds no list of class names")
    return names
