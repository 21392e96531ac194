"""The packed format: what the JSON beside a mosaic of kept patches says, and what it may say.

`<key>.patches.jpg` (or webp, png) holds the kept blocks of a square crop, side by side in the order of their positions;
`<key>.patches.json` tells where they belong; `<key>.background.jpg`, where there is one, is a thumbnail of the whole
crop. Read back, all of it is untrusted input.

In the JSON the positions are a bit mask, `kept`: one bit for each block of the grid, row by row, packed into bytes from
the highest bit on, as two hexadecimal digits a byte. `np.unpackbits` of the bytes gives the mask, zeros behind it.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Literal, get_args

import numpy as np

from patchsieve.pipeline.errors import ContentError

CodecName = Literal["jpeg", "webp", "png"]

VERSION, VERSION_WITH_BACKGROUND = 2, 3
RECORD_FIELD = "patches.json"
BACKGROUND_FIELD = "background.jpg"
EXTENSIONS: dict[CodecName, str] = {"jpeg": "jpg", "webp": "webp", "png": "png"}
MAX_SIDE = 8192
"""Longest side of a pruned image in pixels: 192 MiB as RGB."""
MAX_GRID = 1024
MAX_JSON = 2**19
"""Longest JSON that is parsed, in bytes; the mask of the largest grid fits."""
MAX_MOSAIC_SIDE = 16_383
"""Longest side of a mosaic in pixels, which is what WebP can hold."""

_LARGEST_SIZE = 2**31 - 1
_KEPT = "kept"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedRecord:
    """Where the blocks of a mosaic belong; all sizes in pixels.

    The crop is a square of `grid` x `grid` blocks of `block` x `block` pixels, resized from the box `crop` = (top,
    left, height, width) of the decoded, upright original of `original_size` = (height, width). `positions`: kept
    blocks, row by row, ascending. `columns`: blocks in a row of the mosaic. `background`: side of the thumbnail, None
    where there is none. Raises ValueError for values that do not fit together.
    """

    grid: int
    block: int
    positions: tuple[int, ...]
    columns: int
    original_size: tuple[int, int]
    crop: tuple[int, int, int, int]
    codec: CodecName
    background: int | None = None

    def __post_init__(self) -> None:
        problem = self._shape_problem() or self._mosaic_problem() or self._origin_problem()
        if problem:
            raise ValueError(problem)

    @property
    def version(self) -> int:
        """Of the format: that of before backgrounds wherever there is none."""
        return VERSION if self.background is None else VERSION_WITH_BACKGROUND

    @property
    def size(self) -> int:
        """Side of the whole crop."""
        return self.grid * self.block

    @property
    def mosaic_size(self) -> tuple[int, int]:
        """(height, width) of the mosaic; the last row may end with blocks that are padding."""
        return -(-len(self.positions) // self.columns) * self.block, self.columns * self.block

    @property
    def image_field(self) -> str:
        """The field that holds the mosaic."""
        return packed_field(self.codec)

    def to_json(self) -> bytes:
        """The record as one line of JSON; the same bytes for the same record."""
        values = {"version": self.version, **dataclasses.asdict(self)}
        if self.background is None:
            del values["background"]
        values[_KEPT] = _mask_of(values.pop("positions"), self.grid)
        return json.dumps(values, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, data: bytes) -> PackedRecord:
        """The record that `to_json` wrote; ContentError, with the reason, for anything else."""
        if len(data) > MAX_JSON:
            raise ContentError(f"{RECORD_FIELD}: {len(data)} bytes, more than the limit of {MAX_JSON}")
        try:
            values = json.loads(data)
        except (ValueError, RecursionError):
            raise ContentError(f"{RECORD_FIELD}: not JSON") from None
        # First of all: what other versions hold is not known here.
        version = values.get("version", VERSION) if isinstance(values, dict) else VERSION
        if type(version) is not int or version not in (VERSION, VERSION_WITH_BACKGROUND):
            raise ContentError(
                f"{RECORD_FIELD}: version {_shown(version)} is none of {VERSION} and {VERSION_WITH_BACKGROUND}, which "
                "this patchsieve reads"
            )
        names = {"version", _KEPT, *(field.name for field in dataclasses.fields(cls))} - {"positions"}
        if version == VERSION:
            names.remove("background")
        if not isinstance(values, dict) or set(values) != names:
            raise ContentError(f"{RECORD_FIELD}: must be an object of {', '.join(sorted(names))}")
        lists = ("original_size", "crop")
        if not all(isinstance(values[name], list) for name in lists):
            raise ContentError(f"{RECORD_FIELD}: {', '.join(lists)} must be lists")
        mask = values.pop(_KEPT)
        del values["version"]
        if version == VERSION_WITH_BACKGROUND and values["background"] is None:
            raise ContentError(f"{RECORD_FIELD}: background is null")
        arguments: dict[str, Any] = {name: tuple(v) if name in lists else v for name, v in values.items()}
        try:
            return cls(**arguments, positions=_positions_of(mask, values["grid"]))
        except ValueError as error:
            raise ContentError(f"{RECORD_FIELD}: {error}") from None

    def _shape_problem(self) -> str | None:
        if not _whole(self.grid, 1, MAX_GRID) or not _whole(self.block, 1, MAX_SIDE):
            return f"a grid of {_shown(self.grid)} blocks of {_shown(self.block)} px cannot be"
        if self.size > MAX_SIDE:
            return f"{self.size} px are more than the limit of {MAX_SIDE}"
        if self.codec not in get_args(CodecName):
            return f"codec {_shown(self.codec)} is none of {', '.join(get_args(CodecName))}"
        if self.background is not None and not _whole(self.background, 1, self.size):
            return f"a background of {_shown(self.background)} px for a crop of {self.size}"
        return None

    def _mosaic_problem(self) -> str | None:
        if not 1 <= len(self.positions) <= self.grid**2:
            return f"{len(self.positions)} positions of a grid of {self.grid} x {self.grid}"
        last = -1
        for position in self.positions:
            if not _whole(position, last + 1, self.grid**2 - 1):
                return f"position {_shown(position)} is out of the grid or out of order"
            last = position
        if not _whole(self.columns, 1, len(self.positions)):
            return f"{_shown(self.columns)} columns for {len(self.positions)} blocks"
        if max(self.mosaic_size) > MAX_MOSAIC_SIDE:
            return f"a mosaic of {self.mosaic_size} px, more than the limit of {MAX_MOSAIC_SIDE} a side"
        return None

    def _origin_problem(self) -> str | None:
        if not _wholes(self.original_size, 2, 1):
            return f"original size {_shown(self.original_size)}"
        if not _wholes(self.crop, 4, 0):
            return f"crop {_shown(self.crop)}"
        top, left, height, width = self.crop
        inside = top + height <= self.original_size[0] and left + width <= self.original_size[1]
        if not height or not width or not inside:
            return f"crop {self.crop} does not lie in an image of {self.original_size}"
        return None


def packed_field(codec: CodecName) -> str:
    """The field of a mosaic of this codec: `patches.jpg`, `patches.webp`, `patches.png`."""
    return f"patches.{EXTENSIONS[codec]}"


def mosaic_columns(count: int, block: int) -> int:
    """Blocks in a row of the mosaic for `count` kept blocks: one row of all, or as few even rows as fit.

    One row, since decoders of JPEG 4:2:0 smooth colour across what lies side by side: blocks then have at most two
    neighbours, often the ones that they had in the picture. On 80 photographs, half of the blocks kept, that gave 0.6
    to 0.7 dB more than a square of the same bytes, and no block is padding.
    """
    rows = -(-count // max(1, MAX_MOSAIC_SIDE // block))
    return -(-count // rows)


def _mask_of(positions: tuple[int, ...], grid: int) -> str:
    """The positions as a bit mask in hexadecimal digits."""
    keep_L = np.zeros(grid**2, np.bool_)
    keep_L[list(positions)] = True
    return np.packbits(keep_L).tobytes().hex()


def _positions_of(mask: Any, grid: Any) -> tuple[int, ...]:
    """The positions in a bit mask; ValueError for what `_mask_of` does not give for this grid."""
    if not _whole(grid, 1, MAX_GRID):
        raise ValueError(f"a grid of {_shown(grid)} blocks cannot be")
    try:
        packed = bytes.fromhex(mask)
    except (TypeError, ValueError):
        packed = b""
    bits = np.flatnonzero(np.unpackbits(np.frombuffer(packed, np.uint8)))
    if packed.hex() != mask or len(packed) != -(-(grid**2) // 8) or (bits >= grid**2).any():
        raise ValueError(f"{_KEPT} {_shown(mask)} is no mask of a grid of {grid} x {grid}")
    return tuple(bits.tolist())


def _whole(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _wholes(values: tuple[Any, ...], count: int, low: int) -> bool:
    return len(values) == count and all(_whole(value, low, _LARGEST_SIZE) for value in values)


def _shown(value: Any) -> str:
    """A value from untrusted data, short."""
    try:
        text = repr(value)
    except RecursionError:
        return f"a {type(value).__name__} of {len(value)}, nested too deep"
    return text if len(text) <= 60 else f"{text[:60]}..."
