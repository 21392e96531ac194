"""Reads pictures back from the sheets that they were drawn on."""

from __future__ import annotations

import numpy as np

from patchsieve.pipeline.pictures.sheet import Sheet


def tile(drawn: np.ndarray, sheet: Sheet, row: int, column: int) -> np.ndarray:
    """The picture `[S, S, 3]` at that place of a sheet, each pixel of which is a square of one colour there."""
    top, left = sheet.tile_at(row, column)
    squares = drawn[top : top + sheet.side, left : left + sheet.side]
    pixels = squares[:: sheet.zoom, :: sheet.zoom]
    assert np.array_equal(squares, pixels.repeat(sheet.zoom, axis=0).repeat(sheet.zoom, axis=1))
    return pixels


def patch(picture: np.ndarray, position: int, *, grid: int) -> np.ndarray:
    """Its pixels, for reading and writing."""
    side = len(picture) // grid
    top, left = (side * place for place in divmod(position, grid))
    return picture[top : top + side, left : left + side]
