"""Samples good and bad, and ways to damage an archive: what every job that reads shards is shown."""

from __future__ import annotations

import struct
import zlib

from tests.helpers.archives import END, member
from tests.helpers.photos import encode, photo, photo_pixels

PHOTO = photo(1, 60, 80)
HEADER = 512


def png_bomb(side: int) -> bytes:
    """A valid one-bit PNG of side x side pixels in a few hundred kilobytes, without ever holding the pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    lines = bytes((1 + -(-side // 8)) * 100)
    body = b"".join(packer.compress(lines) for _ in range(side // 100)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


GOOD = {
    "first": [("first.jpg", PHOTO), ("first.cls", b"3")],
    "pixel": [("pixel.png", encode(photo_pixels(2, 1, 1), "PNG"))],
    "strip": [("strip.png", encode(photo_pixels(3, 3, 2000), "PNG"))],
    "both": [("both.png", photo(4, 50, 90)), ("both.jpg", photo(5, 40, 30))],
    "in/folder": [("in/folder.seg.png", photo(6, 50, 90)), ("in/folder.JPG", photo(6, 50, 90))],
    "last": [("last.webp", encode(photo_pixels(7, 60, 60), "WEBP"))],
}
BAD = {
    "cut": ([("cut.jpg", PHOTO[: len(PHOTO) // 2])], "decode", "cut.jpg", "JPEG breaks off"),
    "empty": ([("empty.jpg", b"")], "decode", "empty.jpg", "empty file"),
    "text": ([("text.jpg", b"<html>not found</html>")], "decode", "text.jpg", "not an image"),
    "bomb": ([("bomb.png", png_bomb(30_000))], "decode", "bomb.png", "too large"),
    "bare": ([("bare.json", b"{}"), ("bare.txt", b"a cat")], "sample", None, "json, txt"),
    "first": ([("first.jpg", photo(8, 60, 80))], "sample", "first.jpg", "duplicate key"),
    "apart": ([("apart.jpg", PHOTO)], "sample", "apart.jpg", "duplicate key"),
}


# What is alone of a sample when its members lie apart has no image; the rest is a duplicate of its key.
FAULTS = [(key, *what) for key, (_, *what) in BAD.items()] + [("apart", "sample", None, "cls")]
"""(sample key, stage, member, part of the reason) of every fault of `mixed_members`."""


def mixed_members() -> list[tuple[str, bytes]]:
    """All of `GOOD` and `BAD` in one shard; what is alone of `apart` is a bad sample too."""
    apart = [("apart.cls", b"1")]
    return [
        *GOOD["first"],
        *BAD["cut"][0],
        *GOOD["pixel"],
        *apart,
        *BAD["empty"][0],
        *GOOD["strip"],
        *BAD["bomb"][0],
        *BAD["apart"][0],
        *GOOD["both"],
        *BAD["bare"][0],
        *GOOD["in/folder"],
        *BAD["text"][0],
        *BAD["first"][0],
        *GOOD["last"],
    ]


def whole_members(count: int) -> list[bytes]:
    """So many good samples, each as the bytes of its only member."""
    return [member(f"s{number}.jpg", photo(number, 40, 50)) for number in range(count)]


# Ways to damage the archive of five `whole_members`: the first three are there in full.
DAMAGED = {
    "cut in the middle of an image": lambda m: b"".join(m[:3]) + m[3][: len(m[3]) // 2],
    "cut inside a header": lambda m: b"".join(m[:3]) + m[3][:100],
    "cut at a member boundary": lambda m: b"".join(m[:3]),
    "one end block of two": lambda m: b"".join(m[:3]) + END[:HEADER],
    "garbage in a later header": lambda m: b"".join(m[:3]) + b"\xa5" * HEADER + m[3][HEADER:] + m[4] + END,
}
