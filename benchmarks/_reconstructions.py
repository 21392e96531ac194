"""Reconstructions of photos as a sheet, for a model card."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from patchsieve.pipeline.images.patches import unpatchify, visible_count
from patchsieve.pipeline.pictures.contact_sheet import only_patches
from patchsieve.pipeline.pictures.rows import as_picture, painted
from patchsieve.pipeline.pictures.sheet import Pixels, Sheet, SheetColumn, SheetRow, colours, enlarge
from patchsieve.pipeline.pretrain.report import centre_patches, fixed_orders
from patchsieve.pipeline.teacher.model import MaskedAutoencoder

ERROR_SCALE = 80.0
"""Error of a patch, in gray levels of 255, that is drawn brightest."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReconstructedPhoto:
    """One row of the sheet. S: side of the view in pixels, V: visible patches.

    `view` and `reconstruction`: uint8 `[S, S, 3]`; `visible`: `[V]`, patches that were shown; `caption` says how good
    the reconstruction is.
    """

    caption: str
    view: Pixels
    visible: NDArray[np.int16]
    reconstruction: Pixels


def reconstructed_photos(
    model: MaskedAutoencoder, photos: Sequence[Tensor], names: Sequence[str], *, mask_ratio: float = 0.75
) -> list[ReconstructedPhoto]:
    """Rows of the sheet: centre crops of photos (uint8 `[3, H, W]`), masks as in `reconstruction_errors`.

    Captions say the share of the hidden pixels' variance, about their mean in this view, that is explained.
    """
    config = model.config
    patches = centre_patches(photos, config.image_size, config.patch_size)
    visible = visible_count(config.positions, mask_ratio)
    shown = fixed_orders(len(patches), config.positions)[:, :visible].sort(dim=1).values
    pictures = painted(model, patches, shown)
    rows = []
    for name, view, places, picture in zip(
        names, unpatchify(patches, config.patch_size), shown, pictures, strict=True
    ):
        row = ReconstructedPhoto(
            caption="",
            view=as_picture(view),
            visible=places.numpy().astype(np.int16),
            reconstruction=picture,
        )
        share = explained_share(row, config.positions)
        rows.append(
            dataclasses.replace(row, caption=f"{name}  ({share:.0%} of the hidden variance explained)")
        )
    return rows


def explained_share(photo: ReconstructedPhoto, positions: int) -> float:
    """1 - error / variance over the hidden pixels of one view, in gray levels; 0 for a view of one colour."""
    hidden = np.ones(positions, dtype=bool)
    hidden[photo.visible] = False
    grid = round(positions**0.5)
    pixels = enlarge(hidden.reshape(grid, grid), len(photo.view))
    truth = photo.view[pixels].astype(np.float64)
    variance = float(truth.var(axis=0).mean())
    error = float(((photo.reconstruction[pixels] - truth) ** 2).mean())
    return 1 - error / variance if variance else 0.0


def reconstruction_sheet(
    photos: Sequence[ReconstructedPhoto], *, positions: int, title: str, subtitle: str
) -> Sheet:
    """A row per photo: the photo, what is visible, the reconstruction, and how far off each hidden patch is."""
    visible, grid = len(photos[0].visible), round(positions**0.5)
    columns = (
        SheetColumn(title="Photo", detail="centre crop"),
        SheetColumn(title="Visible", detail=f"{visible} of {positions} patches"),
        SheetColumn(title="Reconstruction", detail="hidden patches predicted, visible kept"),
        SheetColumn(title="Error", detail="root mean square of each hidden patch"),
    )
    rows = []
    for photo in photos:
        shown = np.isin(np.arange(positions), photo.visible)
        error = np.where(shown, np.nan, patch_errors(photo.view, photo.reconstruction, positions))
        tiles = (
            photo.view,
            only_patches(photo.view, shown),
            photo.reconstruction,
            colours(enlarge(error.reshape(grid, grid) / ERROR_SCALE, len(photo.view))),
        )
        rows.append(SheetRow(tiles=tiles, caption=photo.caption))
    return Sheet(
        title=title,
        subtitle=subtitle,
        columns=columns,
        rows=rows,
        scale_column=3,
        low="0",
        high=f"{ERROR_SCALE:.0f} of 255 or more",
        note="Gray: hidden from the teacher (second column), or not predicted (fourth).",
    )


def patch_errors(picture: Pixels, other: Pixels, positions: int) -> NDArray[np.float64]:
    """Root mean square difference of each patch of two pictures `[S, S, 3]`, in gray levels, `[L]`."""
    grid = round(positions**0.5)
    side = len(picture) // grid
    square = (picture.astype(np.float64) - other) ** 2
    cells: NDArray[np.float64] = square.reshape(grid, side, grid, side, 3).mean((1, 3, 4))
    return np.sqrt(cells).reshape(-1)
