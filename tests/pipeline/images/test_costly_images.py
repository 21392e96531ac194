"""Images that are small as files and would take hours: refused for what they cost, and nothing else with them."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from patchsieve.pipeline.errors import ContentError, InfrastructureError
from patchsieve.pipeline.images import decode as images
from patchsieve.pipeline.images import header
from patchsieve.pipeline.images.bounded import bounded
from patchsieve.pipeline.images.decode import decode_image
from patchsieve.pipeline.images.header import read_header
from tests.helpers.photos import encode
from tests.pipeline.images.image_files import PHOTO

# A scan of the highest bits of one coefficient, whose only block ends at once and goes for all that follow.
EMPTY_SCAN = bytes.fromhex("ffda0008010100010100") + b"\x00"


def with_scans(data: bytes, count: int) -> bytes:
    """A progressive JPEG with empty scans before its end."""
    assert data.endswith(b"\xff\xd9")
    return data[:-2] + count * EMPTY_SCAN + data[-2:]


def test_thousands_of_scans_are_refused_by_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    data = with_scans(encode(PHOTO, progressive=True), 5000)

    def must_not_decode(*arguments: Any) -> Any:
        raise AssertionError("decoded")

    monkeypatch.setattr(images, "_decode_with_torchvision", must_not_decode)
    monkeypatch.setattr(images, "_decode_with_pillow", must_not_decode)
    with pytest.raises(ContentError, match=r"JPEG with 50\d\d scans"):
        decode_image(data)


def test_large_pictures_may_have_fewer_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = PHOTO.shape[0] * PHOTO.shape[1]
    monkeypatch.setattr(header, "MAX_SCANNED_PIXELS", 10 * pixels)
    assert read_header(encode(PHOTO, progressive=True)) is not None  # ten scans, as libjpeg writes them
    with pytest.raises(ContentError, match="JPEG with 11 scans"):
        read_header(with_scans(encode(PHOTO, progressive=True), 1))


def test_what_only_looks_like_a_scan_does_not_count() -> None:
    data = encode(PHOTO)
    fake = 2000 * b"\xff\xda"
    thumbnail = b"\xff\xe1" + (2 + len(fake)).to_bytes(2) + fake
    for odd in (data[:2] + thumbnail + data[2:], data + fake):
        assert decode_image(odd).equal(decode_image(data))


def test_what_takes_too_much_processor_time_is_given_up() -> None:
    stop = threading.Event()

    def spin() -> None:
        while not stop.is_set():
            pass

    with pytest.raises(ContentError, match=r"more than 0\.05 s of processor time"):
        bounded(spin, seconds=0.05)
    stop.set()
    # Waiting costs none.
    assert bounded(lambda: threading.Event().wait(0.1), seconds=0.05) is False


def test_what_a_bounded_call_raises_comes_through() -> None:
    def fail() -> None:
        raise InfrastructureError("out of memory")

    def late() -> None:
        raise TimeoutError("its own")

    with pytest.raises(InfrastructureError, match="out of memory"):
        bounded(fail)
    with pytest.raises(TimeoutError, match="its own"):
        bounded(late)


@pytest.mark.parametrize("file_format", ["TIFF", "GIF", "BMP"])
def test_formats_whose_header_tells_no_cost_are_bounded(
    file_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(call: Any) -> Any:
        raise ContentError("bounded")

    monkeypatch.setattr(images, "bounded", refuse)
    with pytest.raises(ContentError, match="bounded"):
        decode_image(encode(PHOTO, file_format))
