"""How many pixels a process decodes at one moment: a legal image of some hundred kilobytes holds a hundred million."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from patchsieve.pipeline.images.decode import size_of

PIXELS_AT_ONCE = 200_000_000
"""One of the largest images, or 16 photographs of 12 megapixels.

A pixel takes about 15 bytes while it is decoded and cut."""


class PixelGate:
    """Lets threads decode as long as their images have no more pixels together than `limit`, and one in any case."""

    def __init__(self, limit: int = PIXELS_AT_ONCE) -> None:
        self.limit = limit
        self._held = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def hold(self, data: bytes) -> Iterator[None]:
        """Wait until there is room for the image of this file; in the block, its pixels count as in memory."""
        pixels = min(size_of(data), self.limit)
        with self._changed:
            self._changed.wait_for(lambda: self._held + pixels <= self.limit)
            self._held += pixels
        try:
            yield
        finally:
            with self._changed:
                self._held -= pixels
                self._changed.notify_all()


GATE = PixelGate()
"""That of this process."""
