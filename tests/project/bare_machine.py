"""`python -m tests.project.bare_machine MODULE...`: imports modules as where Ray and others are missing."""

from __future__ import annotations

import importlib
import sys

from tests.helpers.missing import leave_out

if __name__ == "__main__":
    leave_out("ray", "webdataset", "tyro")
    for name in sys.argv[1:]:
        importlib.import_module(name)
