"""Where the checkout is that the tests belong to."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
QUICK_START = ROOT / "tests" / "helpers" / "quick_start"


def python_path(*folders: str | Path) -> str:
    """A PYTHONPATH of these folders, for a process that starts as quickly as others of the tests."""
    return os.pathsep.join(map(str, (*folders, QUICK_START)))
