"""Damaged and hostile image files: an error with a reason, or the right pixels, never anything else."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from patchsieve.pipeline.errors import ContentError, InfrastructureError, UserError
from patchsieve.pipeline.images import decode as images
from patchsieve.pipeline.images.decode import decode_image
from tests.helpers.photos import encode
from tests.pipeline.images.image_files import FILES, FORMATS, PHOTO, save


@pytest.mark.parametrize(
    ("file_format", "options"), [*((name, {}) for name in FORMATS), ("JPEG", {"progressive": True})]
)
def test_a_cut_file_never_passes_with_other_pixels(file_format: str, options: dict[str, Any]) -> None:
    data = encode(PHOTO, file_format, **options)
    whole = decode_image(data)
    refused, reasons = 0, set()
    cuts = {*range(0, len(data), max(1, len(data) // 60)), *range(len(data) - 14, len(data))}
    for cut in sorted(cuts):
        try:
            decoded = decode_image(data[:cut])
        except ContentError as error:
            refused += 1
            reasons.add(str(error))
        else:  # no more than the end marker was cut off
            assert cut >= len(data) - 60, (file_format, cut, len(data))
            assert torch.equal(decoded, whole)
    assert refused >= 60
    assert all(reason and "cpp" not in reason for reason in reasons)
    if file_format == "JPEG":
        assert refused == len(cuts)


NO_IMAGES = [
    (b"", "empty file"),
    (b"this is a text named .jpg\n" * 20, "not an image of a known format"),
    (b"<html><body>404</body></html>", "not an image of a known format"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image of a known format"),
    (b"\xff\xd8\xff", "breaks off"),
    (b"\xff\xd8\xff\xd9", "breaks off"),
    (b"\x89PNG\r\n\x1a\n", "breaks off"),
    (b"RIFF\x00\x00\x00\x00WEBP", "breaks off"),
    (b"GIF89a", "."),
    (b"BM", "."),
    (encode(PHOTO, "PNG").replace(b"IDAT", b"IDAX"), "png that no decoder can read"),
]
"""Files that are no image, and words of the reason."""


@pytest.mark.parametrize(("data", "reason"), NO_IMAGES)
def test_what_is_no_image_is_a_content_error(data: bytes, reason: str) -> None:
    with pytest.raises(ContentError, match=reason):
        decode_image(data)


def resized_headers(width: int, height: int) -> dict[str, bytes]:
    """Small files whose headers announce a picture of another size."""
    tiff = Image.new("L", (1, 1))
    buffer = io.BytesIO()
    tiff.save(buffer, "TIFF", tiffinfo={256: width, 257: height})
    jpeg = bytearray(encode(PHOTO))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    ihdr = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + ihdr + struct.pack(">I", zlib.crc32(ihdr))
    png += encode(PHOTO, "PNG")[33:]
    webp = bytearray(FILES["webp animated"])
    webp[24:27], webp[27:30] = ((side - 1).to_bytes(3, "little") for side in (width, height))
    still = bytearray(encode(PHOTO, "WEBP"))
    lossy = still.index(b"\x9d\x01\x2a") + 3
    still[lossy : lossy + 4] = struct.pack("<HH", min(width, 16383), min(height, 16383))
    gif = bytearray(encode(PHOTO, "GIF"))
    gif[6:10] = struct.pack("<HH", width, height)
    bmp = bytearray(encode(PHOTO, "BMP"))
    bmp[18:26] = struct.pack("<ii", width, height)
    ppm = f"P6 {width} {height} 255\n".encode() + bytes(30)
    return {
        "jpeg": bytes(jpeg),
        "png": png,
        "webp": bytes(still),
        "webp animated": bytes(webp),
        "gif": bytes(gif),
        "bmp": bytes(bmp),
        "tiff": buffer.getvalue(),
        "ppm": ppm,
    }


@pytest.mark.parametrize("name", resized_headers(9, 9))
@pytest.mark.parametrize("side", [30000, 10000])
def test_a_bomb_is_refused_by_its_header(name: str, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def decoder(*_: Any) -> None:
        raise AssertionError("a decoder was called")

    monkeypatch.setattr(images, "_DECODERS", dict.fromkeys(("jpeg", "webp"), decoder))
    monkeypatch.setattr(ImageFile.ImageFile, "load", decoder)
    # 10,000 x 10,000 is what Pillow warns of and opens.
    with pytest.raises(ContentError, match="too large"):
        decode_image(
            resized_headers(side, side)[name], max_pixels=images.MAX_PIXELS if side == 30000 else 90_000_000
        )


def test_the_limit_is_on_pixels_and_includes_itself() -> None:
    for data in (encode(PHOTO), encode(PHOTO, "BMP")):
        assert decode_image(data, max_pixels=90 * 131).shape == (3, 90, 131)
        with pytest.raises(ContentError, match=r"131 x 90 pixels, the limit is 11789"):
            decode_image(data, max_pixels=90 * 131 - 1)


def test_a_picture_above_the_size_pillow_warns_of_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 8_000_000)
    wide = Image.new("1", (3000, 3000))
    assert decode_image(save(wide, "TIFF", compression="group4")).shape == (3, 3000, 3000)


@pytest.mark.parametrize("file_format", FORMATS)
def test_damage_anywhere_is_a_content_error_or_an_image(file_format: str) -> None:
    data = encode(PHOTO[:40, :60], file_format)
    random = np.random.default_rng(1)
    reasons = set()
    for _ in range(60):
        damaged = bytearray(data)
        for place in random.integers(0, len(data), size=int(random.integers(1, 6))):
            damaged[place] = random.integers(0, 256)
        try:
            decoded = decode_image(bytes(damaged), max_pixels=1_000_000)
        except ContentError as error:
            reasons.add(str(error))
        else:
            assert decoded.dtype == torch.uint8
    assert all(reason.strip() and "\n" not in reason for reason in reasons)


@pytest.mark.parametrize(
    "failure",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory: 9 bytes"
        ),
        RuntimeError("decode_jpeg, /x/decode_jpeg.cpp:171, Insufficient memory (case 4)"),
    ],
)
def test_running_out_of_memory_is_no_fault_of_the_image(
    failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: Any) -> None:
        raise failure

    monkeypatch.setattr(images, "_DECODERS", {"jpeg": exhausted})
    monkeypatch.setattr(ImageFile.ImageFile, "load", exhausted)
    with pytest.raises(InfrastructureError, match="out of memory"):
        decode_image(FILES["jpeg"])
    with pytest.raises(InfrastructureError, match="out of memory"):
        decode_image(FILES["bmp"])


def test_a_process_that_accepts_truncated_images_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert decode_image(FILES["jpeg"]).shape == (3, 90, 131)
    for data in (FILES["png"][:-500], FILES["bmp"]):
        with pytest.raises(UserError, match="LOAD_TRUNCATED_IMAGES"):
            decode_image(data)
