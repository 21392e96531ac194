"""Views that a table does not hold, made again from their images: the same crop, flip and pixels as the teacher saw.

Shape suffixes: N views, V visible patches, L grid positions, P values of a patch (p * p * 3).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchsieve.pipeline.errors import ContentError, UserError
from patchsieve.pipeline.images.decode import decode_image
from patchsieve.pipeline.images.patches import patchify
from patchsieve.pipeline.images.pixel_gate import GATE
from patchsieve.pipeline.images.views import ViewBox, apply_view
from patchsieve.ranker.batches.image_shards import ShardImages
from patchsieve.ranker.batches.table_file import BOX_COLUMNS


class ReplayedViews:
    """Whole views of rows of one slice, or their visible patches; holds the image files, encoded, and decodes late.

    Raises UserError where the shard is not the one that was scored; InfrastructureError where the store fails.
    """

    def __init__(
        self,
        columns: pa.Table,
        keys: pa.DictionaryArray,
        rows: NDArray[np.int64],
        images: ShardImages,
        number: int,
        *,
        grid: int,
        patch_size: int,
        whole: bool,
    ) -> None:
        """`columns` (those of BOX_COLUMNS) and `keys`: of all rows of slice `number`; `rows`: those that are read.

        `whole`: `take` gives all patches of a view, else the visible ones.
        """
        self._grid, self._patch_size, self._whole = grid, patch_size, whole
        self._shard = images.shard(number)
        self._boxes = np.stack([columns[name].to_numpy().astype(np.int64) for name in BOX_COLUMNS], axis=1)
        self._codes = keys.indices.to_numpy()
        names = keys.dictionary
        wanted = {int(code): names[int(code)].as_py() for code in np.unique(self._codes[rows])}
        files = images.read(number, set(wanted.values()))
        self._files = {code: (key, files[key]) for code, key in wanted.items()}

    def take(self, rows: NDArray[np.int64], positions_NV: Tensor, pool: ThreadPoolExecutor) -> Tensor:
        """Patches of these rows, uint8 `[N, L, P]`, or `[N, V, P]` at the positions; an image is decoded once."""
        order = np.argsort(self._codes[rows], kind="stable")
        cuts = np.flatnonzero(np.diff(self._codes[rows][order])) + 1
        patches = torch.empty(
            len(rows),
            self._grid**2 if self._whole else positions_NV.shape[1],
            self._patch_size**2 * 3,
            dtype=torch.uint8,
        )

        def replay(places: NDArray[np.int64]) -> None:
            key, data = self._files[int(self._codes[rows[places[0]]])]
            with GATE.hold(data):
                image = self._decoded(key, data, self._boxes[rows[places[0]], :2])
                for place in places.tolist():
                    view = self._view(image, self._boxes[rows[place], 2:])
                    patches[place] = view if self._whole else view[positions_NV[place]]

        # The list is read for what a decoder raises.
        list(pool.map(replay, np.split(order, cuts)))
        return patches

    def _decoded(self, key: str, data: bytes, size: NDArray[np.int64]) -> Tensor:
        try:
            image = decode_image(data)
            if image.shape[1:] != tuple(size):
                raise ContentError(
                    f"{image.shape[2]} x {image.shape[1]} pixels instead of {size[1]} x {size[0]}"
                )
        except ContentError as error:
            differs = f"{self._shard.name} is not the shard that was scored, or is damaged"
            raise UserError(f"{differs}: the image of {key}: {error}") from None
        return image

    def _view(self, image: Tensor, box: NDArray[np.int64]) -> Tensor:
        """The patches of a view, `[L, P]`."""
        top, left, height, width, hflip = box.tolist()
        inside = 0 <= top < top + height <= image.shape[1] and 0 <= left < left + width <= image.shape[2]
        if not inside:
            raise UserError(f"a table of {self._shard.name} has a crop that lies outside of its image")
        view = apply_view(
            image, ViewBox(top, left, height, width, bool(hflip)), self._grid * self._patch_size
        )
        return patchify(view[None], self._patch_size)[0]
