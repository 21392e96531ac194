"""Pictures with one known object of a class each: scenes of photos, or photos with boxes.

Shape suffixes: L patches of a picture, P values of a patch.
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
from benchmarks._scene_maker import PATCH, make_scene
from benchmarks._scene_photos import Material
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.images.decode import decode_image
from patchsieve.pipeline.images.patches import patchify
from patchsieve.pipeline.images.views import ViewBox, apply_view

GRID = 14
_SIZE = 448


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """`patches`: uint8 `[L, P]`; `object`: how much of each is the object's, float32 `[L]`.

    `group`: pictures of one share an object, `background` those of one background.
    """

    label: str
    patches: Tensor
    object: NDArray[np.float32]
    group: str
    background: str

    def share(self, keep_L: NDArray[np.bool_]) -> float:
        """Of the object, that is kept."""
        return float(self.object[keep_L].sum() / self.object.sum())


def scene_pictures(material: Material, count: int, seed: int) -> Iterator[Picture]:
    """The first so many scenes of 448 px, as the ranker sees them."""
    for number in range(count):
        scene = make_scene(
            material.objects, material.backgrounds, size=_SIZE, tiles=1, seed=seed, number=number
        )
        cells = avg_pool2d(scene.alpha[None, None], _SIZE // GRID)
        yield Picture(
            label=scene.label,
            patches=_patches(scene.pixels),
            object=cells.flatten().numpy(),
            group=scene.object,
            background=scene.background,
        )


def boxed_pictures(annotations: Path, images: Path | None, count: int) -> Iterator[Picture]:
    """The centre crop of the first photos, once for each class whose boxes reach into it, so many pictures at most."""
    made = 0
    for photo in read_annotations(annotations, images):
        found = [(label, crop_cells(photo, label, GRID)) for label in photo.boxes]
        found = [(label, cells) for label, cells in found if cells.any()]
        if not found:
            continue
        patches_LP = _boxed_patches(photo)
        for label, cells in found:
            if made == count:
                return
            made += 1
            yield Picture(
                label=label,
                patches=patches_LP,
                object=cells,
                group=photo.path.name,
                background=photo.path.name,
            )


def labels_of(pictures: Sequence[Picture], classes: Sequence[str]) -> NDArray[np.int64]:
    """Each picture's class, int64 `[N]`."""
    return np.array([classes.index(picture.label) for picture in pictures], np.int64)


def _boxed_patches(photo: Boxed) -> Tensor:
    pixels = decode_image(photo.path.read_bytes())
    if tuple(pixels.shape[1:]) != (photo.height, photo.width):
        raise UserError(
            f"{photo.path} has {pixels.shape[1]} x {pixels.shape[2]} pixels, "
            f"its annotation {photo.height} x {photo.width}"
        )
    return _patches(pixels)


def _patches(pixels: Tensor) -> Tensor:
    height, width = pixels.shape[1:]
    short = min(height, width)
    box = ViewBox((height - short) // 2, (width - short) // 2, short, short, hflip=False)
    return patchify(apply_view(pixels, box, GRID * PATCH)[None], PATCH)[0]
