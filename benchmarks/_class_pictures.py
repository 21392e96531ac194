"""Pictures with one known object of a class each: scenes of photos, or photos with boxes.

Shape suffixes: L patches of a picture, S its side in pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool2d

from benchmarks._boxes import Boxed, crop_cells, read_annotations
from benchmarks._scene_maker import make_scene
from benchmarks._scene_photos import Material
from benchmarks._scene_probe import photo_pictures
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.images.decode import decode_image
from patchsieve.pipeline.images.views import ViewBox, apply_view
from patchsieve.pipeline.randomness import KeyedRandom

GRID = 14
SIZE = 448
"""Side of a picture that is selected from; whole photos that are learned from are of another."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """`pixels`: uint8 `[3, S, S]`; `object`: how much of each patch is the object's, float32 `[L]`.

    `group`: pictures of one share an object, `background` those of one background.
    """

    label: str
    pixels: Tensor
    object: NDArray[np.float32]
    group: str
    background: str

    def share(self, keep_L: NDArray[np.bool_]) -> float:
        """Of the object, that is kept."""
        return float(self.object[keep_L].sum() / self.object.sum())


def scene_pictures(material: Material, count: int, seed: int) -> Iterator[Picture]:
    """The first so many scenes of 448 px."""
    for number in range(count):
        scene = make_scene(
            material.objects, material.backgrounds, size=SIZE, tiles=1, seed=seed, number=number
        )
        cells = avg_pool2d(scene.alpha[None, None], SIZE // GRID)
        yield Picture(
            label=scene.label,
            pixels=scene.pixels,
            object=cells.flatten().numpy(),
            group=scene.object,
            background=scene.background,
        )


def whole_photos(material: Material, count: int, seed: int) -> Iterator[Picture]:
    """So many photos at most, of all classes in turns; each in a square as large as objects of scenes are."""
    turns = []
    for name, photos in material.objects.items():
        drawn = [(int(KeyedRandom(seed, one.key, "unbiased photos").words(1)[0]), one) for one in photos]
        drawn.sort(key=lambda pair: pair[0])
        turns += [(turn, order, name, photo) for turn, (order, photo) in enumerate(drawn)]
    # Within a turn in a drawn order, or every fifth photo would be one of the same few classes.
    for _, _, name, photo in sorted(turns, key=lambda one: one[:2])[:count]:
        yield Picture(
            label=name,
            pixels=photo_pictures(photo)[0],
            object=np.ones(GRID**2, np.float32),
            group=photo.key,
            background=photo.key,
        )


def boxed_pictures(annotations: Path, images: Path | None, count: int) -> Iterator[Picture]:
    """The centre crop of the first photos, once for each class whose boxes reach into it, so many pictures at most."""
    made = 0
    for photo in read_annotations(annotations, images):
        found = [(label, crop_cells(photo, label, GRID)) for label in photo.boxes]
        found = [(label, cells) for label, cells in found if cells.any()]
        if not found:
            continue
        pixels = _boxed_pixels(photo)
        for label, cells in found:
            if made == count:
                return
            made += 1
            yield Picture(
                label=label,
                pixels=pixels,
                object=cells,
                group=photo.path.name,
                background=photo.path.name,
            )


def labels_of(pictures: Sequence[Picture], classes: Sequence[str]) -> NDArray[np.int64]:
    """Each picture's class, int64 `[N]`."""
    return np.array([classes.index(picture.label) for picture in pictures], np.int64)


def _boxed_pixels(photo: Boxed) -> Tensor:
    pixels = decode_image(photo.path.read_bytes())
    height, width = pixels.shape[1:]
    if (height, width) != (photo.height, photo.width):
        raise UserError(
            f"{photo.path} has {height} x {width} pixels, its annotation {photo.height} x {photo.width}"
        )
    short = min(height, width)
    box = ViewBox((height - short) // 2, (width - short) // 2, short, short, hflip=False)
    return apply_view(pixels, box, SIZE)
