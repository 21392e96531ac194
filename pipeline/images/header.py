"""What an image file says of itself before any pixel is decoded: format, size, EXIF orientation.

Images are untrusted: a file of a few hundred kilobytes can announce gigapixels, or go over its pixels in thousands of
empty scans. Size and scans are read here, so that nothing is allocated or begun for such a file. Sources: ITU-T T.81
(JPEG), W3C PNG (third edition), RFC 9649 (WebP), EXIF 2.32 (orientation).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Literal

from patchsieve.pipeline.errors import ContentError

MAX_SCANS = 1000
"""Scans of a JPEG, as libjpeg-turbo advises; encoders write up to a few dozen."""
MAX_SCANNED_PIXELS = 2**33
"""Pixels of a JPEG times its scans; a scan of 4,096 px square takes 44 ms, so this is 23 s."""

_START_OF_SCAN = b"\xff\xda"
# In coded data a byte FF is followed by 00, or by the number of a restart.
_NEXT_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")


@dataclasses.dataclass(frozen=True)
class ImageHeader:
    """Size in pixels as stored, before `orientation` (EXIF, 1 to 8) is applied."""

    format: Literal["jpeg", "png", "webp"]
    height: int
    width: int
    orientation: int
    animated: bool = False


def read_header(data: bytes, *, scans: bool = True) -> ImageHeader | None:
    """The header of a JPEG, PNG or WebP file, told by its first bytes; None for any other format.

    `scans`: whether those of a JPEG are counted, for which the whole file is gone through. Raises ContentError where
    the file breaks off, or turns to nonsense, before its size, and for more scans than any picture needs.
    """
    if data[:3] == b"\xff\xd8\xff":
        return _jpeg(data, scans=scans)
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return _png(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp(data)
    return None


def _jpeg(data: bytes, *, scans: bool) -> ImageHeader:
    size: tuple[int, int] | None = None
    exif = b""
    if data.rfind(b"\xff\xd9") < 0:
        raise ContentError("JPEG breaks off: it has no end marker")
    for marker, segment in _jpeg_segments(data):
        # Frame headers (SOF) are C0 to CF, less Huffman tables, the reserved JPG and arithmetic conditioning.
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and len(segment) >= 6:
            size = int.from_bytes(segment[1:3]), int.from_bytes(segment[3:5])
        elif marker == 0xE1 and segment[:6] == b"Exif\x00\x00":
            # One block that is too large for a segment goes on in the next, as Pillow reads it.
            exif += segment[6:]
    if size is None:
        raise ContentError("JPEG breaks off before its frame header")
    if scans:
        _check_scans(data, size[0] * size[1])
    return ImageHeader("jpeg", *size, exif_orientation(exif))


def _jpeg_segments(data: bytes, *, whole: bool = False) -> Iterator[tuple[int, bytes]]:
    """Marker and contents of each segment before the first scan, or to the end; skips stray bytes, as libjpeg does."""
    position = 2
    while (position := data.find(b"\xff", position)) >= 0 and position + 3 < len(data):
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
        elif marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:  # these have no contents
            position += 2
        elif marker == 0xD9 or (marker == 0xDA and not whole):
            return
        else:
            stop = position + 2 + int.from_bytes(data[position + 2 : position + 4])
            yield marker, data[position + 4 : stop]
            position = max(stop, position + 4)
            if marker == 0xDA:
                coded = _NEXT_MARKER.search(data, position)
                position = coded.start() if coded else len(data)


def _check_scans(data: bytes, pixels: int) -> None:
    """Raise ContentError for more scans, or more pixels in all of them, than any picture needs."""

    def too_many(scans: int) -> bool:
        return scans > MAX_SCANS or scans * pixels > MAX_SCANNED_PIXELS

    # Thumbnails and what lies behind the end hold such bytes as well: counted exactly where that matters.
    if too_many(data.count(_START_OF_SCAN)):
        scans = sum(marker == 0xDA for marker, _ in _jpeg_segments(data, whole=True))
        if too_many(scans):
            raise ContentError(f"JPEG with {scans} scans of {pixels} pixels, more than any picture needs")


def _png(data: bytes) -> ImageHeader:
    if data[12:16] != b"IHDR" or len(data) < 26:
        raise ContentError("PNG breaks off before its header")
    orientation = 1
    position = 8
    while position + 8 <= len(data):
        length, name = int.from_bytes(data[position : position + 4]), data[position + 4 : position + 8]
        if name == b"eXIf":
            orientation = exif_orientation(data[position + 8 : position + 8 + length])
        position += 12 + length
    return ImageHeader("png", int.from_bytes(data[20:24]), int.from_bytes(data[16:20]), orientation)


def _webp(data: bytes) -> ImageHeader:
    name, body = data[12:16], data[20:30]
    if len(body) < 10:
        raise ContentError("WebP breaks off before its header")
    if name == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
        width, height = (int.from_bytes(body[at : at + 2], "little") & 0x3FFF for at in (6, 8))
        return ImageHeader("webp", height, width, 1)
    if name == b"VP8L" and body[0] == 0x2F:
        sizes = int.from_bytes(body[1:5], "little")
        return ImageHeader("webp", ((sizes >> 14) & 0x3FFF) + 1, (sizes & 0x3FFF) + 1, 1)
    if name != b"VP8X":
        raise ContentError("WebP without an image")
    orientation = 1
    position = 12
    while position + 8 <= len(data):
        length = int.from_bytes(data[position + 4 : position + 8], "little")
        if data[position : position + 4] == b"EXIF":
            orientation = exif_orientation(data[position + 8 : position + 8 + length])
        position += 8 + length + length % 2
    width, height = (int.from_bytes(body[at : at + 3], "little") + 1 for at in (4, 7))
    return ImageHeader("webp", height, width, orientation, animated=bool(body[0] & 0x02))


def exif_orientation(block: bytes) -> int:
    """Orientation tag (274) of an EXIF block, 1 to 8; 1 where there is none or the block is damaged."""
    while block.startswith(b"Exif\x00\x00"):
        block = block[6:]  # some writers write it twice
    order: Literal["little", "big"]
    if block[:4] == b"II*\x00":
        order = "little"
    elif block[:4] == b"MM\x00*":
        order = "big"
    else:
        return 1
    start = int.from_bytes(block[4:8], order)
    for entry in range(int.from_bytes(block[start : start + 2], order)):
        field = block[start + 2 + 12 * entry : start + 14 + 12 * entry]
        if len(field) < 12:
            break
        if int.from_bytes(field[:2], order) == 274:
            # The specification says SHORT (type 3, two bytes); some writers use LONG.
            stop = 10 if int.from_bytes(field[2:4], order) == 3 else 12
            value = int.from_bytes(field[8:stop], order)
            return value if 1 <= value <= 8 else 1
    return 1
