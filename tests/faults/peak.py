"""The memory that the largest pictures take which are decoded at all: `python -m tests.faults.peak`.

Two PNGs of 13,377 pixels a side, just below the limit, on two threads, as an actor of score or prune decodes them with
the default of `--decode-pixels`. Prints the most that the process held, and what it held before.
"""

from __future__ import annotations

import io
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from patchsieve.pipeline.images.decode import decode_image
from patchsieve.pipeline.images.pixel_gate import GATE
from patchsieve.pipeline.images.views import apply_view, center_box

SIDE = 13_377


def held(name: str) -> float:
    """GB of this process: VmRSS, what it holds; VmHWM, the most that it held."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024 / 1e9


def view_of(data: bytes) -> None:
    """What a thread does with a picture: decode it, and cut a view."""
    with GATE.hold(data):
        image = decode_image(data)
        apply_view(image, center_box(SIDE, SIDE, size=224), 224)


def main() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), (90, 120, 40)).save(buffer, "PNG", compress_level=1)
    data, before = buffer.getvalue(), held("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the most is counted from now on
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(view_of, [data, data]))
    print(f"{len(data):,} bytes twice: {held('VmHWM'):.2f} GB, before {before:.2f} GB")


if __name__ == "__main__":
    main()
