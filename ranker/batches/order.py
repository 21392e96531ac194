"""Which rows of the tables a worker reads when: arithmetic on counts and seeds, nothing is read here.

An epoch lays all slices of the tables (see `TableIndex`) out in a random order, the rows of each in a random order too,
and cuts the sequence into one equal share per worker. A share is read in windows of consecutive slices; within a window
rows come in a random order. So every place in an epoch is known without reading what lies before it, and every worker
has equally many rows: slices that lie on a cut are read by both neighbours.

Shape suffix: S slices.
"""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
from numpy.typing import NDArray

from patchsieve.pipeline.randomness import KeyedRandom


def held_out(sample_key: str, share: float, seed: int) -> bool:
    """Whether an image is kept from training: a fixed share of all keys, whatever table or view they are in.

    An image held out at one share is held out at every larger one.
    """
    text = f"held-out {seed} ".encode() + sample_key.encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") < share * 2.0**64


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """Rows `start` to `stop` - 1 of a slice, counted in the order that `slice_order` gives them."""

    slice: int
    start: int
    stop: int


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """Rows that are in memory together: `start` rows of the worker's share come before them."""

    start: int
    pieces: tuple[Piece, ...]

    @property
    def rows(self) -> int:
        """Rows of all pieces."""
        return sum(piece.stop - piece.start for piece in self.pieces)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ReadingOrder:
    """The order of one worker: `rank` of `ranks`; the same arguments give the same order anywhere.

    `rows`: rows of each slice that are read, int64 `[S]`; `sizes`: bytes that a slice takes in memory, int64 `[S]`;
    `window_bytes`: what the slices of a window may take together, one slice at least.
    """

    rows: NDArray[np.int64]
    sizes: NDArray[np.int64]
    seed: int
    rank: int
    ranks: int
    batch_size: int
    window_bytes: int

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.window_bytes < 1:
            raise ValueError(
                f"batch size {self.batch_size} and window of {self.window_bytes} bytes must be positive"
            )
        if not 0 <= self.rank < self.ranks:
            raise ValueError(f"there is no rank {self.rank} of {self.ranks}")

    @property
    def share(self) -> int:
        """Rows that each worker has in an epoch."""
        return int(self.rows.sum()) // self.ranks

    @property
    def batches(self) -> int:
        """Whole batches of a worker in an epoch, the same for every rank.

        What does not fill a batch is left out: fewer than `ranks * batch_size` rows, other ones in every epoch.
        """
        return self.share // self.batch_size

    def windows(self, epoch: int, first_step: int = 0) -> list[Window]:
        """The windows that hold the batches from `first_step` on, in order."""
        order = KeyedRandom(self.seed, "", "row groups", epoch).permutation(len(self.rows))
        ends = np.cumsum(self.rows[order])
        begin = self.rank * self.share
        stop = begin + self.batches * self.batch_size
        wanted = begin + first_step * self.batch_size
        found: list[Window] = []
        pieces: list[Piece] = []
        window_start, size = begin, 0
        # From the first window of the share on, even where they are passed over: cuts between windows must not
        # depend on where reading begins.
        for place in range(int(np.searchsorted(ends, begin, "right")), len(order)):
            number = int(order[place])
            slice_end = int(ends[place])
            slice_start = slice_end - int(self.rows[number])
            if slice_start >= stop:
                break
            if slice_start == slice_end:
                continue
            if pieces and size + int(self.sizes[number]) > self.window_bytes:
                if slice_start > wanted:
                    found.append(Window(window_start - begin, tuple(pieces)))
                window_start, size, pieces = slice_start, 0, []
            # Up to the end of the share, not of its last batch, so that what is left out differs by epoch.
            last = min(slice_end, begin + self.share)
            pieces.append(Piece(number, max(begin - slice_start, 0), last - slice_start))
            size += int(self.sizes[number])
        if pieces and wanted < stop:
            found.append(Window(window_start - begin, tuple(pieces)))
        return found

    def slice_order(self, epoch: int, number: int) -> NDArray[np.int64]:
        """The order in which an epoch takes the rows of a slice, int64 `[rows of the slice]`."""
        return KeyedRandom(self.seed, "", "rows of a group", epoch, number).permutation(
            int(self.rows[number])
        )

    def window_order(self, epoch: int, window: Window) -> NDArray[np.int64]:
        """The order in which the rows of a window are given out, int64 `[rows of the window]`."""
        return self._of_window("rows of a window", epoch, window).permutation(window.rows)

    def mirrored(self, epoch: int, window: Window) -> NDArray[np.bool_]:
        """Which of them, in the order given out, are mirrored where that is asked for: half of them."""
        return np.asarray(self._of_window("mirror", epoch, window).uniform(window.rows) < 0.5)

    def _of_window(self, purpose: str, epoch: int, window: Window) -> KeyedRandom:
        return KeyedRandom(self.seed, "", purpose, epoch, self.rank, self.ranks, window.start)
