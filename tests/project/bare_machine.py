"""`python -m tests.project.bare_machine MODULE...`: imports modules as where Ray and others are missing."""

from __future__ import annotations

import importlib
import sys

MISSING = ("ray", "webdataset", "tyro")

if __name__ == "__main__":
    assert not set(MISSING) & set(sys.modules)
    sys.modules.update(dict.fromkeys(MISSING))  # type: ignore[arg-type]
    for name in sys.argv[1:]:
        importlib.import_module(name)
