"""What rankers are called that are no folder; imports nothing heavy."""

from __future__ import annotations

BUNDLED = ("tiny",)
BASELINE_PREFIX = "baseline:"


def needs_no_file(name: str) -> bool:
    """Whether what is named lies in no folder of a user's: a bundled ranker, or a baseline."""
    return name in BUNDLED or name.startswith(BASELINE_PREFIX)
