"""`python -m tests.pipeline.images.decoding_run`: decodes images, a line of hexadecimal digits each."""

from __future__ import annotations

import sys
import warnings

from patchsieve.pipeline.images.decode import decode_image


def main() -> None:
    """With all warnings."""
    warnings.simplefilter("always")
    for line in sys.stdin:
        decode_image(bytes.fromhex(line))


if __name__ == "__main__":
    main()
