"""`python -m tests.pipeline.score.endless_decoder FD`: a decoder that does not come back from an image."""

from __future__ import annotations

import sys
from multiprocessing.connection import Connection
from typing import Any

from patchsieve.pipeline.score import decoder


def main() -> None:
    """With little processor time, and in a library that never looks at Python's signals."""
    changed: Any = decoder
    changed.CPU_SECONDS = 0.3
    changed.decode_image = lambda data: pow(3, 10**9)
    decoder.serve(Connection(int(sys.argv[1])))


if __name__ == "__main__":
    main()
