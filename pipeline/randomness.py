"""Random numbers that depend on what they are for, never on when or where they are drawn.

Every draw has a key (seed, sample key, purpose, numbers such as the view). Its hash keys NumPy's Philox,
a counter-based generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). Only raw
words are used: NumPy promises the stream of a bit generator, not that of the methods built on it (NEP 19).
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


class KeyedRandom:
    """A stream of random numbers for one key."""

    def __init__(self, seed: int, sample_key: str, purpose: str, *numbers: int) -> None:
        digest = hashlib.sha256()
        # Lengths go in front, so that no two different keys give the same bytes.
        for part in (str(seed), sample_key, purpose, *map(str, numbers)):
            encoded = part.encode("utf-8", "surrogateescape")
            digest.update(len(encoded).to_bytes(8, "little"))
            digest.update(encoded)
        self._bits = np.random.Philox(key=int.from_bytes(digest.digest()[:16], "little"))

    def words(self, count: int) -> NDArray[np.uint64]:
        """The next `count` raw 64-bit words, uint64 `[count]`."""
        return np.asarray(self._bits.random_raw(count), dtype=np.uint64)

    def uniform(self, count: int) -> NDArray[np.float64]:
        """The next `count` numbers of [0, 1) with 53 random bits each, float64 `[count]`."""
        return (self.words(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def permutation(self, count: int) -> NDArray[np.int64]:
        """A random order of 0 .. count - 1, int64 `[count]`: the order of as many random words."""
        return np.argsort(self.words(count), kind="stable")
