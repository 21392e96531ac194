"""Libraries that are missing, though this process may be a fork of one that has loaded them."""

from __future__ import annotations

import sys


def leave_out(*libraries: str) -> None:
    """Whoever imports one of them, or a module of it, gets a ModuleNotFoundError from now on."""
    loaded = [name for name in sys.modules if name.partition(".")[0] in libraries]
    sys.modules.update(dict.fromkeys([*libraries, *loaded]))
