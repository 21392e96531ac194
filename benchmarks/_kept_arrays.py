"""Arrays that a benchmark keeps, so that its next run does not make them again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def kept_in(path: Path, make: Callable[[], dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """What `make` gives, by name; read from the file where it is there, else written to it."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        local_part = path.with_suffix(".part.npz")
        np.savez(local_part, **make())
        local_part.rename(path)
    with np.load(path) as found:
        return dict(found)
