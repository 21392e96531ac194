"""Seeded mutations of sound files: each is read as what it is, or refused in one line; nothing else comes out.

Bounded: some hundreds of mutations in a few seconds. Another seed for a longer run: `PATCHSIEVE_FUZZ=SEED:COUNT`.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from patchsieve.pipeline.images.decode import decode_image
from patchsieve.pipeline.output.owner import owner_of
from patchsieve.pipeline.output.records import parse_footer, read_footer
from patchsieve.pipeline.pruned.format import PackedRecord
from patchsieve.pipeline.shards.specs import Shard
from patchsieve.pipeline.tables.reader import table_batches
from tests.faults.catalogue import REFUSED
from tests.helpers.archives import WHOLE, read_all
from tests.helpers.photos import encode
from tests.helpers.tables import record_of, write_table
from tests.pipeline.images.image_files import FORMATS, PHOTO
from tests.pipeline.pruned.test_format import record

SEED, _, COUNT = os.environ.get("PATCHSIEVE_FUZZ", "1:60").partition(":")
MUTATIONS = int(COUNT or 60)


def mutated(data: bytes, draw: random.Random) -> bytes:
    """Some bits flipped, bytes replaced, a part removed, doubled or put elsewhere."""
    changed = bytearray(data)
    for _ in range(draw.randrange(1, 4)):
        at, length = draw.randrange(len(changed)), draw.randrange(1, 64)
        kind = draw.randrange(6)
        if kind == 0:
            changed[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            changed[at : at + length] = draw.randbytes(len(changed[at : at + length]))
        elif kind == 2 and len(changed) > length + 1:
            del changed[at : at + length]
        elif kind == 3:
            changed[at:at] = changed[at : at + length]
        elif kind == 4:
            changed[at : at + 4] = draw.choice((b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"\x80\0\0\0"))
        elif len(changed) > 64:
            del changed[max(32, at) :]
    return bytes(changed)


def fuzz(data: bytes, read: Callable[[bytes], object], name: str) -> int:
    """How many of the mutations were refused, each in one line."""
    draw = random.Random(f"{SEED} {name}")
    refused: list[str] = []
    for _ in range(MUTATIONS):
        try:
            read(mutated(data, draw))
        except REFUSED as error:
            refused.append(str(error))
    assert all(said.strip() and "\n" not in said for said in refused)
    return len(refused)


def test_archives(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        samples, faults, reader = read_all(Shard(str(path), "a", "a", len(data), ""))
        assert reader.size == len(data)
        assert len(samples) + len(faults) < 100
        assert all("\n" not in fault.reason for fault in faults)

    assert fuzz(WHOLE, read, "tar") == 0, "an archive's damage is told, not raised"


@pytest.mark.parametrize("file_format", FORMATS)
def test_images(file_format: str) -> None:
    data = encode(PHOTO[:40, :60], file_format)
    assert fuzz(data, lambda spoiled: decode_image(spoiled, max_pixels=10**6), file_format) > 0


def test_tables(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.parquet", record_of(b"a"), images=1)
    data = path.read_bytes()

    def read(spoiled: bytes) -> None:
        path.write_bytes(spoiled)
        footer = read_footer(str(path))
        footer.record()
        for _ in table_batches(str(path), footer.schema.names):
            pass

    assert fuzz(data, read, "table") > MUTATIONS // 2
    # The footer is a small part of the file, and all that a done-check looks at.
    footer = data[-(int.from_bytes(data[-8:-4], "little") + 8) :]
    assert fuzz(footer, lambda spoiled: parse_footer("a", pa.py_buffer(spoiled)).record(), "footer") > 0


def test_records(tmp_path: Path) -> None:
    assert fuzz(record().to_json(), PackedRecord.from_json, "packed record") > MUTATIONS // 2
    file = tmp_path / "owner.json"

    def read(spoiled: bytes) -> None:
        file.write_bytes(spoiled)
        assert isinstance(owner_of(str(tmp_path)), dict)

    content = {"run_id": "run-1", "host": "node", "pid": 7, "heartbeat": 1.5}
    assert fuzz(json.dumps(content).encode(), read, "owner") == 0
