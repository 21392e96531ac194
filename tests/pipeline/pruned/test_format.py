"""The JSON beside a mosaic: what goes through it, and that nothing odd does."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from patchsieve.pipeline.errors import ContentError
from patchsieve.pipeline.pruned.format import MAX_JSON, MAX_MOSAIC_SIDE, PackedRecord, mosaic_columns


def record(**changes: Any) -> PackedRecord:
    values: dict[str, Any] = {
        "grid": 14,
        "block": 16,
        "positions": (0, 3, 195),
        "columns": 3,
        "original_size": (240, 320),
        "crop": (15, 55, 210, 210),
        "codec": "jpeg",
    }
    return PackedRecord(**{**values, **changes})


def as_json(**changes: Any) -> bytes:
    return json.dumps({**json.loads(record().to_json()), **changes}).encode()


MASK = "9" + 47 * "0" + "10"
"""Bits 0, 3 and 195 of 196, and four that are none."""


def test_golden_json() -> None:
    assert record().to_json() == (
        b'{"version":2,"grid":14,"block":16,"columns":3,"original_size":[240,320],"crop":[15,55,210,210],'
        b'"codec":"jpeg","kept":"%s"}' % MASK.encode()
    )


def test_a_background_is_of_the_next_version() -> None:
    told = json.loads(record(background=48).to_json())
    assert (told["version"], told["background"]) == (3, 48)
    assert (record(background=48).version, record().version) == (3, 2)


def test_the_mask_reads_as_documented() -> None:
    told = json.loads(record().to_json())
    bits = "".join(f"{int(digit, 16):04b}" for digit in told["kept"])
    assert [at for at, bit in enumerate(bits) if bit == "1"] == [0, 3, 195]
    assert len(bits) == 200


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"codec": "png", "positions": tuple(range(196)), "columns": 49},
        {"grid": 1, "block": 8192, "positions": (0,), "columns": 1},
        {"crop": (0, 0, 240, 320)},
        {"background": 48},
    ],
)
def test_records_come_back(changes: dict[str, Any]) -> None:
    assert PackedRecord.from_json(record(**changes).to_json()) == record(**changes)


def test_sizes() -> None:
    kept = record(block=32, positions=tuple(range(10)), columns=4)
    assert (kept.size, kept.mosaic_size, kept.image_field) == (448, (96, 128), "patches.jpg")
    assert [record(codec=name).image_field for name in ("webp", "png")] == ["patches.webp", "patches.png"]


ODD_VALUES: list[tuple[dict[str, Any], str]] = [
    ({"version": 1}, "version 1 is none of 2 and 3"),
    ({"version": 4, "kept": None, "positions": []}, "version 4 is none of 2 and 3"),
    ({"version": 3}, "must be an object of background"),
    ({"background": 48}, "must be an object of block"),
    ({"version": 3, "background": None}, "background is null"),
    ({"version": 3, "background": 0}, "a background of 0 px for a crop of 224"),
    ({"version": 3, "background": 225}, "a background of 225 px for a crop of 224"),
    ({"version": 3, "background": "48"}, "a background of '48' px"),
    ({"version": True}, "version True"),
    ({"grid": 0}, "a grid of 0"),
    ({"grid": 13}, "is no mask of a grid of 13 x 13"),
    ({"grid": "14"}, "a grid of '14'"),
    ({"grid": 10**30}, "a grid of 1000"),
    ({"block": 16.0}, "blocks of 16.0"),
    ({"grid": 1024, "kept": "f" * 2**18}, "16384 px are more than the limit"),
    ({"codec": "gif"}, "codec 'gif'"),
    ({"codec": ["jpeg"]}, "codec"),
    ({"kept": "0" * 50}, "0 positions"),
    ({"kept": MASK[:-2]}, "is no mask of a grid of 14 x 14"),
    ({"kept": MASK[:-1] + "1"}, "is no mask of a grid"),
    ({"kept": MASK + "00"}, "is no mask of a grid"),
    ({"kept": MASK.upper().replace("9", "F")}, "is no mask of a grid"),
    ({"kept": " " + MASK}, "is no mask of a grid"),
    ({"kept": "x" * 50}, "is no mask of a grid"),
    ({"kept": [0, 3, 195]}, r"kept \[0, 3, 195\] is no mask"),
    ({"kept": 7}, "kept 7 is no mask"),
    ({"columns": 0}, "0 columns"),
    ({"columns": 4}, "4 columns for 3 blocks"),
    ({"grid": 2, "block": 4096, "kept": "f0", "columns": 4}, "a mosaic of"),
    ({"original_size": [240]}, "original size"),
    ({"original_size": [240, 0]}, "original size"),
    ({"crop": [0, 0, 0, 10]}, "does not lie"),
    ({"crop": [31, 0, 210, 210]}, "does not lie"),
    ({"crop": [0, -1, 210, 210]}, "crop"),
    ({"crop": [0, 0, 10, float("inf")]}, "crop"),
    ({"more": 1}, "must be an object of"),
]
"""Changes of a sound record, and words of the reason why it is refused."""


@pytest.mark.parametrize(("changes", "reason"), ODD_VALUES)
def test_odd_values_are_content_errors(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ContentError, match=reason) as caught:
        PackedRecord.from_json(as_json(**changes))
    assert len(str(caught.value)) < 200


NO_RECORDS = [b"", b"{", b"null", b"[]", b"\xff\xfe", b"[" * 100_000, b"1" * 10_000, b"{}"]
"""What is no record at all."""


@pytest.mark.parametrize("data", NO_RECORDS)
def test_what_is_no_record_is_a_content_error(data: bytes) -> None:
    with pytest.raises(ContentError, match=r"patches\.json"):
        PackedRecord.from_json(data)


def test_no_depth_of_json_is_more_than_a_content_error() -> None:
    for depth in range(700, 1000):
        text = as_json(columns=0).replace(b'"columns": 0', b'"columns": ' + b"[" * depth + b"]" * depth)
        with pytest.raises(ContentError):
            PackedRecord.from_json(text)


def test_endless_json_is_not_parsed() -> None:
    with pytest.raises(ContentError, match="more than the limit"):
        PackedRecord.from_json(b" " * (MAX_JSON + 1))


def test_a_record_that_cannot_be_is_not_made() -> None:
    with pytest.raises(ValueError, match="out of order"):
        record(positions=(3, 0, 195))
    with pytest.raises(ValueError, match="position 196 is out"):
        record(positions=(0, 196))
    with pytest.raises(ValueError, match="position False"):
        record(positions=(False, 3))
    assert dataclasses.replace(record(), columns=1).mosaic_size == (48, 16)


def test_mosaics_are_one_row_until_they_are_too_wide() -> None:
    assert [mosaic_columns(count, 16) for count in (1, 98, 1023, 1024, 4096)] == [1, 98, 1023, 512, 820]
    for count in (1, 7, 500, 5000):
        for block in (14, 16, 96, 8192):
            columns = mosaic_columns(count, block)
            assert columns * block <= MAX_MOSAIC_SIDE
            assert 0 <= -(-count // columns) * columns - count < -(-count // columns)
