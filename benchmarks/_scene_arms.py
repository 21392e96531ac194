"""What may be left of a scene: selectors, controls, and the answer of who is told where the object is.

Shape suffixes: S side of a scene in pixels, L patches of the ranker's grid, P values of a patch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks._scene_maker import PATCH, Scene
from patchsieve.pipeline.images.decode import decode_image
from patchsieve.pipeline.images.patches import patchify
from patchsieve.pipeline.images.views import ViewBox, apply_view
from patchsieve.pipeline.pruned.codec import ImageCodec, flatten_dropped
from patchsieve.pipeline.randomness import KeyedRandom
from patchsieve.pipeline.teacher.model import MaskedAutoencoder
from patchsieve.ranker.baselines.baselines import BaselineSources, make_baseline
from patchsieve.ranker.model.checkpoint import LoadedRanker
from patchsieve.ranker.prove.views import Canvas, packed_files, tar_bytes
from patchsieve.ranker.select import regions, selection

Way = Literal["crop", "fill"]
"""How the probe sees what is kept: `crop`, each connected piece's rectangle alone, the surest of them answers; `fill`,
the whole scene with every dropped block in its mean colour or as the thumbnail has it."""

GRID = 14
SEEN = GRID * PATCH
"""The ranker and all baselines see the whole scene at this side."""
_NEAR = 2.0
"""Blocks."""
_QUALITY = 90
"""Of the JPEGs whose bytes are counted, but for those of `as_jpeg`."""
BASELINES = ("random", "grid", "centre", "edge", "variance", "gradient")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """`scores`: `ranker`, a baseline, `place` (a random one), `told` (the object's) or `near` it, `""`: whole images.

    `shape`: topk, window or region, resized or full; `background`: side in pixels of a thumbnail that is paid
    from what is kept; `as_jpeg`: instead of all that, the whole scene as a JPEG of the bytes which that takes packed.
    """

    scores: str
    shape: str
    keep: float
    way: Way
    windows: int = 1
    compactness: float = regions.DEFAULT_COMPACTNESS
    background: int = 0
    as_jpeg: bool = False

    @property
    def selector(self) -> str:
        """Its name, without ratio and way."""
        if self.as_jpeg:
            return "jpeg"
        parts = [self.scores, self.shape] if self.scores else [self.shape]
        if self.windows > 1:
            parts.append(f"x{self.windows}")
        if self.shape == "region" and self.compactness != regions.DEFAULT_COMPACTNESS:
            parts.append(f"c{self.compactness:g}")
        if self.background:
            parts.append(f"+{self.background}px")
        return " ".join(parts)

    @property
    def id(self) -> str:
        """Of its files."""
        name = self.selector.replace(" ", "-").replace("+", "bg")
        return f"{name}-{self.keep:g}-{self.way}"

    def blocks(self, size: int) -> int:
        """Patches of the ranker's grid that it keeps, its thumbnail paid."""
        per_block = (size // SEEN) ** 2
        return selection.keep_count(GRID**2, self.keep) - math.ceil(
            (self.background // PATCH) ** 2 / per_block
        )

    def tokens(self, size: int) -> int:
        """Tokens of 16 px of a scene, thumbnail and all."""
        if self.shape == "full" or self.as_jpeg:
            return (size // PATCH) ** 2
        if self.shape == "resized":
            return resized_grid(self.keep, size) ** 2
        return self.blocks(size) * (size // SEEN) ** 2 + (self.background // PATCH) ** 2


def candidates(keep: float, way: Way) -> list[Arm]:
    """The product's selectors, of which validation chooses one."""

    def arm(shape: str, scores: str = "ranker", **more: float) -> Arm:
        return Arm(scores=scores, shape=shape, keep=keep, way=way, **more)

    found = [
        arm("window"),
        arm("window", windows=2),
        arm("window", windows=3),
        arm("region"),
        arm("window", background=64),
        arm("window", background=112),
        *(arm("window", "leverage", windows=count) for count in (1, 2, 3)),
    ]
    return found if way == "crop" else [arm("topk"), *found]


def controls(chosen: Arm) -> list[Arm]:
    """Everything that this selector has to beat, and the bound `told`; baselines choose as it does.

    Scattered patches have no rectangle to crop.
    """
    keep, way = chosen.keep, chosen.way
    whole = [
        Arm(scores="", shape="resized", keep=keep, way="crop"),
        Arm(scores="", shape="full", keep=1, way="crop"),
    ]
    if way == "crop":
        places = [
            Arm(scores=name, shape="window", keep=keep, way=way) for name in ("told", "place", "centre")
        ]
        scored = [dataclasses.replace(chosen, scores=name) for name in ("edge", "variance", "gradient")]
        if chosen.scores != "ranker":
            scored.append(dataclasses.replace(chosen, scores="ranker"))
        return [*places, *scored, *whole, dataclasses.replace(chosen, as_jpeg=True)]
    told = Arm(scores="told", shape="window", keep=keep, way=way)
    return [told, *(Arm(scores=name, shape="topk", keep=keep, way=way) for name in BASELINES), *whole]


def resized_grid(keep: float, size: int) -> int:
    """Tokens along a side of the smaller image that comes nearest to the same number."""
    return round(math.sqrt(selection.keep_count(GRID**2, keep)) * size / SEEN)


class Scorer:
    """Scores of scenes, each made once, float32 `[L]` by name."""

    def __init__(self, ranker: LoadedRanker, teacher: MaskedAutoencoder, seed: int) -> None:
        self._ranker, self._seed = ranker, seed
        sources = BaselineSources(grid=GRID, patch_size=PATCH, seed=seed, teacher=teacher)
        self._baselines = {name: make_baseline(name, sources) for name in (*BASELINES, "leverage")}

    @torch.inference_mode()
    def __call__(self, name: str, scene: Scene, number: int) -> NDArray[np.float32]:
        """By the ranker or a baseline on the scene at 224 px; around a random place, or around the object's middle."""
        size = scene.pixels.shape[1]
        if name in ("told", "near"):
            top, left, height, width = scene.box
            row, column = (top + height / 2) / size * GRID, (left + width / 2) / size * GRID
            if name == "near":
                down, right = (KeyedRandom(self._seed, "", "near", number).uniform(2) - 0.5) * 2 * _NEAR
                row, column = row + down, column + right
            return _nearness((row, column))
        if name == "place":
            row, column = KeyedRandom(self._seed, "", "random place", number).uniform(2).tolist()
            return _nearness((3.5 + row * (GRID - 7), 3.5 + column * (GRID - 7)))
        patches_LP = patchify(
            apply_view(scene.pixels, ViewBox(0, 0, size, size, hflip=False), SEEN)[None], PATCH
        )
        if name == "ranker":
            scores_NL: Tensor = self._ranker.model.forward_image(patches_LP.to(self._ranker.device))
            return scores_NL[0].cpu().numpy()
        return self._baselines[name](patches_LP[0], str(number))


def kept(arm: Arm, scores_L: NDArray[np.float32], size: int) -> NDArray[np.bool_]:
    """The blocks that stay, bool `[L]`."""
    scores_NL, count = scores_L[None], arm.blocks(size)
    if arm.shape == "window":
        return regions.window(scores_NL, count, windows=arm.windows)[0]
    if arm.shape == "region":
        return regions.region(scores_NL, count, compactness=arm.compactness)[0]
    return selection.topk(scores_NL, count)[0]


def share_kept(scene: Scene, keep_L: NDArray[np.bool_]) -> float:
    """Of the object, weighted by its alpha."""
    block = scene.pixels.shape[1] // GRID
    held = (
        torch.from_numpy(keep_L.reshape(GRID, GRID)).repeat_interleave(block, 0).repeat_interleave(block, 1)
    )
    return float((scene.alpha * held).sum() / scene.alpha.sum())


def views(arm: Arm, scene: Scene, keep_L: NDArray[np.bool_] | None) -> tuple[list[Tensor], int]:
    """What the probe sees, uint8 `[3, H, W]` each, and what its files take in a tar, as JPEG."""
    pixels, size = scene.pixels, scene.pixels.shape[1]
    canvas = Canvas(GRID, size // GRID, ImageCodec("jpeg", _QUALITY))
    if keep_L is None:
        whole = pixels if arm.shape == "full" else _resized(pixels, resized_grid(arm.keep, size) * PATCH)
        return [whole], tar_bytes([canvas.codec.encode(whole)])
    thumbnail = _resized(pixels, arm.background) if arm.background else None
    nbytes = tar_bytes(packed_files(pixels, keep_L, canvas, thumbnail))
    if arm.as_jpeg:
        data = _jpeg_of(pixels, nbytes)
        return [decode_image(data)], tar_bytes([data])
    shown = _shown(arm, pixels, keep_L, thumbnail)
    return shown, nbytes


def _jpeg_of(pixels: Tensor, nbytes: int) -> bytes:
    """The JPEG of the highest quality that takes no more bytes in a tar."""
    low, high, best = 1, 100, ImageCodec("jpeg", 1).encode(pixels)
    while low <= high:
        middle = (low + high) // 2
        data = ImageCodec("jpeg", middle).encode(pixels)
        if tar_bytes([data]) <= nbytes:
            low, best = middle + 1, data
        else:
            high = middle - 1
    return best


def _shown(arm: Arm, pixels: Tensor, keep_L: NDArray[np.bool_], thumbnail: Tensor | None) -> list[Tensor]:
    filled = flatten_dropped(pixels, keep_L, GRID, thumbnail if arm.way == "fill" else None)
    if arm.way == "fill":
        return [filled]
    block = pixels.shape[1] // GRID
    crops = [
        filled[:, top * block : bottom * block, left * block : right * block]
        for top, bottom, left, right in pieces(keep_L)
    ]
    return crops if thumbnail is None else [*crops, thumbnail]


def pieces(keep_L: NDArray[np.bool_]) -> list[tuple[int, int, int, int]]:
    """Rectangles around the connected pieces of a mask: top, bottom, left, right in blocks."""
    open_cells = set(np.flatnonzero(keep_L).tolist())
    found = []
    while open_cells:
        piece, queue = [], [open_cells.pop()]
        while queue:
            cell = queue.pop()
            piece.append(divmod(cell, GRID))
            row, column = piece[-1]
            near = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
            for beside in (r * GRID + c for r, c in near if 0 <= c < GRID):
                if beside in open_cells:
                    open_cells.remove(beside)
                    queue.append(beside)
        rows, columns = [row for row, _ in piece], [column for _, column in piece]
        found.append((min(rows), max(rows) + 1, min(columns), max(columns) + 1))
    return sorted(found)


def _nearness(middle: Sequence[float]) -> NDArray[np.float32]:
    """How near each block is to a place, in blocks."""
    line = np.arange(GRID) + 0.5
    distance = (line[:, None] - middle[0]) ** 2 + (line[None] - middle[1]) ** 2
    return (-distance).astype(np.float32).reshape(-1)


def _resized(pixels: Tensor, size: int) -> Tensor:
    side = pixels.shape[1]
    return apply_view(pixels, ViewBox(0, 0, side, side, hflip=False), size)
