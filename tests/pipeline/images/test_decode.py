"""Decoding: colours against Pillow, 16 bits, orientation, threads."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from patchsieve.pipeline.errors import ContentError
from patchsieve.pipeline.images.decode import decode_image
from patchsieve.pipeline.images.header import exif_orientation, read_header
from tests.helpers.photos import encode
from tests.pipeline.images.image_files import FILES, FORMATS, PHOTO, as_array, by_pillow, save


@pytest.mark.parametrize("name", FILES)
def test_pixels_equal_those_of_pillow(name: str) -> None:
    pixels = as_array(decode_image(FILES[name]))
    np.testing.assert_array_equal(pixels, by_pillow(FILES[name]))


@pytest.mark.parametrize("name", [name for name in FILES if "ycck" not in name and "one bit" not in name])
def test_pixels_are_those_of_the_picture(name: str) -> None:
    # Equal to Pillow could still be wrong in both: the picture itself is known.
    expected = PHOTO.astype(float)
    if "gray" in name:
        expected = (expected @ [0.299, 0.587, 0.114])[..., None]
    assert abs(as_array(decode_image(FILES[name])) - expected).mean() < 10


def png_16_bit(values: np.ndarray) -> bytes:
    """A PNG of uint16 `[H, W, channels]`, written by hand since Pillow has no 16-bit colour."""
    height, width, channels = values.shape
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\x00" + row.astype(">u2").tobytes() for row in values)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_png_is_scaled_and_not_clipped(channels: int) -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(64, 1024, 1).repeat(channels, axis=2)
    expected = (values[..., :1] // 256).astype(np.uint8).repeat(3, axis=2)
    np.testing.assert_array_equal(as_array(decode_image(png_16_bit(values))), expected)


@pytest.mark.parametrize("file_format", ["TIFF", "PPM", "JPEG2000"])
def test_16_bit_gray_by_pillow_is_scaled_and_not_clipped(file_format: str) -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = (values // 256).astype(np.uint8)[..., None].repeat(3, axis=2)
    options = {"irreversible": False} if file_format == "JPEG2000" else {}
    decoded = as_array(decode_image(save(Image.fromarray(values), file_format, **options)))
    np.testing.assert_array_equal(decoded, expected)


def test_big_endian_16_bit_tiff() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    big = Image.frombytes("I;16B", (256, 256), values.astype(">u2").tobytes())
    expected = (values // 256).astype(np.uint8)
    np.testing.assert_array_equal(as_array(decode_image(save(big, "TIFF")))[..., 0], expected)


@pytest.mark.parametrize("values", [np.full((8, 8), 0.5, np.float32), np.full((8, 8), 70000, np.int32)])
def test_pixels_without_a_defined_white_are_refused(values: np.ndarray) -> None:
    with pytest.raises(ContentError, match="no defined white"):
        decode_image(save(Image.fromarray(values), "TIFF"))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(file_format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x010F] = "maker"
    exif[0x0112] = orientation
    data = encode(PHOTO, file_format, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert expected.size == ((131, 90) if orientation < 5 else (90, 131))
    np.testing.assert_array_equal(as_array(decode_image(data)), np.asarray(expected))


@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_orientation_reads_both_byte_orders_and_survives_damage(order: str) -> None:
    block = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HI", 42, 8) + struct.pack(order + "H", 2)
    block += struct.pack(order + "HHI4s", 271, 2, 2, b"a\x00\x00\x00")
    short = block + struct.pack(order + "HHIHH", 274, 3, 1, 6, 0)
    assert exif_orientation(short) == 6
    assert exif_orientation(b"Exif\x00\x00" + short) == 6
    assert exif_orientation(block + struct.pack(order + "HHII", 274, 4, 1, 6)) == 6
    assert exif_orientation(block + struct.pack(order + "HHIHH", 274, 3, 1, 9, 0)) == 1
    for cut in range(len(short) - 2):
        assert exif_orientation(short[:cut]) == 1


@pytest.mark.parametrize("height_width", [(1, 1), (2000, 3), (3, 2000), (7, 5)])
@pytest.mark.parametrize("file_format", FORMATS)
def test_any_size_is_good(file_format: str, height_width: tuple[int, int]) -> None:
    picture = np.full((*height_width, 3), (200, 90, 30), np.uint8)
    assert decode_image(encode(picture, file_format)).shape == (3, *height_width)


def test_torchvision_reads_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_: Any, **__: Any) -> None:
        raise AssertionError("Pillow was called")

    monkeypatch.setattr(Image, "open", opened)
    for name in ("jpeg", "jpeg cmyk", "jpeg gray", "webp", "webp alpha"):
        decode_image(FILES[name])


def test_header_sizes_are_the_decoded_sizes() -> None:
    for data in FILES.values():
        header = read_header(data)
        if header is not None:
            assert (header.height, header.width) == (90, 131)


def test_threads_give_the_same_pixels() -> None:
    files = list(FILES.values()) * 4
    expected = [decode_image(data) for data in FILES.values()] * 4
    with ThreadPoolExecutor(8) as pool:
        for decoded, single in zip(pool.map(decode_image, files), expected, strict=True):
            assert torch.equal(decoded, single)


def test_nothing_is_printed_or_warned_of() -> None:
    # A process of its own: there warnings go where a user sees them.
    names = [name for name in FILES if "transparent" in name or "mpo" in name or "tiff" in name]
    lines = "\n".join(FILES[name].hex() for name in names)
    command = [sys.executable, "-m", "tests.pipeline.images.decoding_run"]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=True, timeout=120)
    printed = [line for line in done.stderr.splitlines() if "PIL" in line or "image" in line.lower()]
    assert (done.stdout, printed) == ("", [])


def test_exif_that_is_written_twice_is_read_as_pillow_does() -> None:
    def jpeg(*blocks: bytes) -> bytes:
        plain = encode(PHOTO)
        return plain[:2] + b"".join(b"\xff\xe1" + (2 + len(b)).to_bytes(2) + b for b in blocks) + plain[2:]

    def told(orientation: int) -> bytes:
        exif = Image.Exif()
        exif[0x0112] = orientation
        return exif.tobytes()

    prefix = b"Exif\x00\x00"
    for data in (
        jpeg(told(6)),
        jpeg(prefix + told(6)),
        jpeg(told(1), told(6)),
        jpeg(told(6), told(8)),
        jpeg(told(6)[:20], prefix + told(6)[20:]),
    ):
        with Image.open(io.BytesIO(data)) as image:
            upright = ImageOps.exif_transpose(image).size
        decoded = decode_image(data)
        assert (decoded.shape[2], decoded.shape[1]) == upright


@pytest.mark.parametrize(("tag", "value"), [(262, 0), (284, 2)])
def test_a_tiff_that_pillow_misreads_is_refused(tag: int, value: int) -> None:
    # By hand: a 2 x 2 picture of 16 bits, three colours for planes.
    colours = 3 if tag == 284 else 1
    pixels = bytes(range(8)) * colours
    entries = {256: (3, 2), 257: (3, 2), 259: (3, 1), 262: (3, 2 if colours == 3 else 1), 277: (3, colours)}
    entries[tag] = (3, value)
    count = len(entries) + 3
    after = 8 + 2 + 12 * count + 4
    ifd = b""
    arrays = struct.pack(f"<{colours}H", *[16] * colours)
    offsets = struct.pack(
        f"<{colours}I", *(after + len(arrays) + 8 * colours + 8 * n for n in range(colours))
    )
    lengths = struct.pack(f"<{colours}I", *[8] * colours)
    if colours == 1:
        extra = {258: (3, 1, 16), 273: (4, 1, after), 279: (4, 1, 8)}
        tail = pixels
    else:
        at = after + len(arrays)
        extra = {258: (3, 3, after), 273: (4, 3, at), 279: (4, 3, at + 12)}
        offsets = struct.pack("<3I", *(at + 24 + 8 * n for n in range(3)))
        tail = arrays + offsets + lengths + pixels
    fields = {key: (kind, 1, number) for key, (kind, number) in entries.items()} | extra
    for key in sorted(fields):
        ifd += struct.pack("<HHII", key, *fields[key])
    data = b"II*\x00" + struct.pack("<I", 8) + struct.pack("<H", len(fields)) + ifd + bytes(4) + tail
    with pytest.raises(ContentError, match="TIFF of 16 bits"):
        decode_image(data)
