"""Memory of a pretended device: what lives there, the most that ever did, a limit; and what is pinned."""

from __future__ import annotations

import threading
import weakref

import torch
from torch import Tensor


class DeviceMemory:
    """Counts storages that tensors of the device hold on to; the caching of PyTorch's allocator is left out."""

    def __init__(self, limit: int | None = None) -> None:
        """`limit`: bytes, None for no end of them."""
        self.limit = limit
        self.live = self.peak = 0
        self.emptied = 0  # times that somebody asked for cached memory to be given back
        self._holders: dict[int, int] = {}
        self._lock = threading.RLock()

    def hold(self, holder: Tensor, inner: Tensor) -> None:
        """Count the storage of `wrapped` until `holder` and all others that hold it are gone.

        Raises torch.OutOfMemoryError where it does not fit.
        """
        storage = inner.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        with self._lock:
            if not self._holders.get(key):
                self._take(size)
            self._holders[key] = self._holders.get(key, 0) + 1
        weakref.finalize(holder, self._release, key, size).atexit = False

    def reserve(self, holder: object, size: int) -> None:
        """Count so many bytes until `holder` is gone."""
        with self._lock:
            self._take(size)
        weakref.finalize(holder, self._give, size).atexit = False

    def start_peak(self) -> None:
        """The peak begins at what lives now."""
        self.peak = self.live

    def _take(self, size: int) -> None:
        if self.limit is not None and self.live + size > self.limit:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size / 2**20:.2f} MiB")
        self.live += size
        self.peak = max(self.peak, self.live)

    def _give(self, size: int) -> None:
        with self._lock:
            self.live -= size

    def _release(self, key: int, size: int) -> None:
        with self._lock:
            self._holders[key] -= 1
            if not self._holders[key]:
                del self._holders[key]
                self.live -= size


class PinnedMemory:
    """Which tensors in main memory a device can copy from and to by itself."""

    def __init__(self) -> None:
        self._storages: set[int] = set()

    def add(self, tensor: Tensor) -> Tensor:
        """The tensor, from now on pinned."""
        key = tensor.untyped_storage()._cdata
        self._storages.add(key)
        weakref.finalize(tensor, self._storages.discard, key).atexit = False
        return tensor

    def __contains__(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._storages
