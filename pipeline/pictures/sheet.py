"""Draws sheets of square pictures with titles, captions and a colour scale: arrays in, one picture out.

Pictures keep their pixels exactly, each as one pixel of the sheet, or as a square of them where pictures are small;
only text and margins are added. Pillow alone draws, with its own font.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import io
import math
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Pixels = NDArray[np.uint8]
"""A picture, uint8 `[H, W, 3]`."""

HIDDEN_GRAY = 128
"""What stands where nothing is shown or known."""

_PAPER, _INK, _PALE_INK = (255, 255, 255), (28, 30, 36), (104, 110, 122)
_MARGIN, _GAP, _LINE, _SCALE_BAR = 24, 10, 20, 14
_SMALLEST_LETTERS = 10
# Narrower columns have no room for their titles.
_SMALLEST_SIDE = 150

# The map "inferno" (Smith and van der Walt, dedicated to the public domain by CC0) at 17 even steps, between
# which it is nearly straight.
_INFERNO = (
    "000004 0b0724 210c4a 3c0965 57106d 70196e 89226a a32b61 bb3755 d14644 e35932 f1711e f98d0a fcab0f f9ca32"
    " f2e865 fcffa4"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SheetColumn:
    """Title and second line above a column, both as wide as its pictures at most."""

    title: str
    detail: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class SheetRow:
    """Pictures of one row, each `[S, S, 3]`, and a line below them."""

    tiles: Sequence[Pixels]
    caption: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sheet:
    """What a sheet says and shows. `scale_column` is the column above the colour scale, `low` and `high` its ends."""

    title: str
    subtitle: str
    columns: Sequence[SheetColumn]
    rows: Sequence[SheetRow]
    scale_column: int
    low: str
    high: str
    note: str

    @property
    def zoom(self) -> int:
        """Side of the square that shows one pixel of a picture."""
        return math.ceil(_SMALLEST_SIDE / len(self.rows[0].tiles[0]))

    @property
    def side(self) -> int:
        """Side of the pictures on the drawn sheet in pixels: S times the zoom."""
        return len(self.rows[0].tiles[0]) * self.zoom

    def tile_at(self, row: int, column: int) -> tuple[int, int]:
        """Top and left of a picture on the drawn sheet."""
        top = _MARGIN + 4 * _LINE + 2 * _GAP + row * (self.side + _LINE + _GAP)
        return top, _MARGIN + column * (self.side + _GAP)


def draw_sheet(sheet: Sheet) -> Pixels:
    """The sheet as a picture; every tile is on it at `sheet.tile_at(row, column)`, `sheet.zoom` times as large."""
    side = sheet.side
    foot, left = sheet.tile_at(len(sheet.rows), sheet.scale_column)
    width = sheet.tile_at(0, len(sheet.columns))[1] - _GAP + _MARGIN
    page = np.full((foot + _SCALE_BAR + 3 * _LINE + _MARGIN, width, 3), _PAPER, dtype=np.uint8)
    for number, row in enumerate(sheet.rows):
        for column, tile in enumerate(row.tiles):
            y, x = sheet.tile_at(number, column)
            page[y : y + side, x : x + side] = enlarge(tile, side)
    page[foot : foot + _SCALE_BAR, left : left + side] = colours(np.linspace(0, 1, side))
    return _write_texts(page, sheet)


def _write_texts(page: Pixels, sheet: Sheet) -> Pixels:
    picture = Image.fromarray(page)
    draw = ImageDraw.Draw(picture)
    width = page.shape[1] - 2 * _MARGIN
    _write(draw, (_MARGIN, _MARGIN - 6), sheet.title, size=22, room=width)
    _write(draw, (_MARGIN, _MARGIN + _LINE + 4), sheet.subtitle, size=13, ink=_PALE_INK, room=width)
    for number, column in enumerate(sheet.columns):
        top, left = sheet.tile_at(0, number)
        _write(draw, (left, top - 2 * _LINE - 2), column.title, size=16, room=sheet.side)
        _write(draw, (left, top - _LINE), column.detail, size=12, ink=_PALE_INK, room=sheet.side)
    for number, row in enumerate(sheet.rows):
        top, left = sheet.tile_at(number, 0)
        _write(draw, (left, top + sheet.side + 4), row.caption, size=12, ink=_PALE_INK, room=width)
    foot, left = sheet.tile_at(len(sheet.rows), sheet.scale_column)
    below = foot + _SCALE_BAR + 4
    _write(draw, (left, below), sheet.low, size=12, room=sheet.side)
    _write(draw, (left + sheet.side, below), sheet.high, size=12, room=sheet.side, anchor="ra")
    _write(draw, (_MARGIN, below + _LINE + 4), sheet.note, size=12, ink=_PALE_INK, room=width)
    return np.array(picture)


def _write(
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    text: str,
    *,
    size: int,
    room: int,
    ink: tuple[int, int, int] = _INK,
    anchor: str = "la",
) -> None:
    """One line of text, in smaller letters or cut short where it would take more than `room` pixels."""
    text, font = plain(text), _font(size)
    while size > _SMALLEST_LETTERS and font.getlength(text) > room:
        size -= 1
        font = _font(size)
    if font.getlength(text) > room:
        lengths = range(len(text))
        text = (
            text[: bisect.bisect(lengths, room, key=lambda n: font.getlength(f"{text[:n]}...")) - 1] + "..."
        )
    draw.text(place, text, font=font, fill=ink, anchor=anchor)


@functools.cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def plain(text: str) -> str:
    """The text in the letters that the font has: accents fall away, what is still unknown becomes `?`."""
    letters = unicodedata.normalize("NFKD", text)
    kept = "".join(letter for letter in letters if not unicodedata.combining(letter))
    return "".join(
        letter if letter.isprintable() else "?" for letter in kept.encode("ascii", "replace").decode()
    )


def colours(values: NDArray[np.floating[Any]]) -> Pixels:
    """Colours of values from 0 (dark) to 1 (bright), `[..., 3]`; gray for NaN, the ends for what lies outside."""
    steps = np.array([list(bytes.fromhex(step)) for step in _INFERNO.split()], dtype=np.float64)
    places = np.linspace(0, 1, len(steps))
    known = np.nan_to_num(values, nan=0.0)
    mixed = np.stack([np.interp(known, places, steps[:, channel]) for channel in range(3)], axis=-1)
    mixed[np.isnan(values)] = HIDDEN_GRAY
    picture: Pixels = np.rint(mixed).astype(np.uint8)
    return picture


def stretch(values: NDArray[np.floating[Any]], low: float = 2, high: float = 98) -> NDArray[np.float64]:
    """The values on a scale where the percentiles `low` and `high` of those that are no NaN are 0 and 1.

    Clipped to it; 0.5 everywhere if the percentiles are equal; NaN stays NaN.
    """
    known = values[~np.isnan(values)].astype(np.float64)
    bottom, top = np.percentile(known, [low, high]) if known.size else (0.0, 0.0)
    if top == bottom:
        return np.where(np.isnan(values), np.nan, 0.5)
    return np.clip((values.astype(np.float64) - bottom) / (top - bottom), 0, 1)


def enlarge(cells: NDArray[Any], side: int) -> NDArray[Any]:
    """Values of G x G cells, `[G, G, ...]`, as `[side, side, ...]`: each pixel has the value of its cell."""
    cell = np.arange(side) * len(cells) // side
    return cells[cell[:, None], cell]


def heat_over(photo: Pixels, scores_GG: NDArray[np.floating[Any]], *, share: float = 0.6) -> Pixels:
    """The photo `[S, S, 3]` with a heat map of its scores `[G, G]` laid over it.

    `share`: how much of the colour is the map's, 0 to 1; where a score is NaN the photo stays as it is.
    """
    cells = enlarge(stretch(scores_GG), len(photo))
    mixed = share * colours(cells).astype(np.float64) + (1 - share) * photo
    picture: Pixels = np.where(np.isnan(cells)[..., None], photo, np.rint(mixed).astype(np.uint8))
    return picture


def picture_file(picture: Pixels, kind: str = "PNG") -> bytes:
    """The picture as a file, PNG or JPEG: the same bytes for the same pixels and library versions."""
    buffer = io.BytesIO()
    options: dict[str, Any] = {"quality": 90, "optimize": True} if kind == "JPEG" else {"optimize": True}
    Image.fromarray(picture).save(buffer, kind, **options)
    return buffer.getvalue()
