"""Pixels in flight are bounded, whatever the threads; one image passes in any case."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from patchsieve.pipeline.images.decode import size_of
from patchsieve.pipeline.images.pixel_gate import PixelGate
from tests.helpers.photos import encode, photo_pixels

SMALL, LARGE = (encode(photo_pixels(1, side, side)) for side in (10, 20))


def test_what_is_in_flight_is_bounded_and_everything_passes() -> None:
    gate, lock = PixelGate(500), threading.Lock()
    held, highest = 0, 0

    def decode(data: bytes) -> None:
        nonlocal held, highest
        with gate.hold(data):
            with lock:
                held += size_of(data)
                highest = max(highest, held)
            with lock:
                held -= size_of(data)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decode, 50 * [SMALL, LARGE]))
    assert 100 <= highest <= 500


def test_an_image_beyond_the_limit_passes_alone() -> None:
    gate = PixelGate(150)
    entered = threading.Event()

    def other() -> None:
        with gate.hold(SMALL):
            entered.set()

    with gate.hold(LARGE):
        thread = threading.Thread(target=other)
        thread.start()
        assert not entered.wait(0.05)
    thread.join(10)
    assert entered.is_set()


def test_an_image_that_fails_gives_its_room_back() -> None:
    gate = PixelGate(400)
    with pytest.raises(ValueError, match="bad"), gate.hold(LARGE):
        raise ValueError("bad")
    with gate.hold(LARGE):
        pass


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"])
def test_the_size_is_told_before_anything_is_decoded(file_format: str) -> None:
    assert size_of(encode(photo_pixels(1, 12, 30), file_format)) == 360
    assert size_of(b"\xff\xd8\xff") == size_of(b"no image") == size_of(b"") == 0
