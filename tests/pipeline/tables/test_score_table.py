"""The score table on disk: schema, metadata, sizes, memory."""

from __future__ import annotations

import dataclasses
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from patchsieve.pipeline.errors import InfrastructureError
from patchsieve.pipeline.identity import digest_of
from patchsieve.pipeline.output.faults import ERRORS_SCHEMA, NO_ERRORS
from patchsieve.pipeline.output.records import read_footer, verify_file
from patchsieve.pipeline.row_config import RowConfig
from patchsieve.pipeline.shards.reader import Fault
from patchsieve.pipeline.tables.reader import read_scores
from patchsieve.pipeline.tables.schema import predicted_bytes, row_identity, table_metadata, table_schema
from patchsieve.pipeline.tables.writer import GROUP_BYTES, TableWriter
from tests.helpers.photos import photo_pixels
from tests.helpers.tables import (
    CONFIG,
    PATCH_BYTES,
    TEACHER,
    VISIBLE,
    faults_summary,
    make_rows,
    record_of,
    write_errors,
    write_table,
)

FAULTS = [
    Fault("photo-7", "photo-7.jpg", "decode", "truncated"),
    Fault("photo-8", None, "sample", "no image field"),
    Fault(None, "photo-9.jpg", "archive", "cut inside a header"),
]


@pytest.mark.parametrize("store", ["patches", "view", "none"])
def test_a_table_has_exactly_the_designed_columns(tmp_path: Path, store: str) -> None:
    config = dataclasses.replace(CONFIG, store=store)
    content = b"shard"
    path = write_table(tmp_path / "a.parquet", record_of(content), config=config)

    columns = {
        "shard": pa.dictionary(pa.int32(), pa.string()),
        "sample_key": pa.string(),
        "view": pa.int16(),
        "image_height": pa.int32(),
        "image_width": pa.int32(),
        "crop_top": pa.int32(),
        "crop_left": pa.int32(),
        "crop_height": pa.int32(),
        "crop_width": pa.int32(),
        "hflip": pa.bool_(),
        "visible": pa.list_(pa.field("element", pa.int16(), nullable=False), 19),
        "score": pa.list_(pa.field("element", pa.float32(), nullable=False), 19),
        **{"patches": {"patches": pa.binary(19 * 768)}, "view": {"pixels": pa.binary()}}.get(store, {}),
    }
    table = pq.read_table(path)
    assert dict(zip(table.schema.names, table.schema.types, strict=True)) == columns
    assert not any(field.nullable for field in table.schema)

    expected = list(make_rows(3, config))
    assert table.num_rows == len(expected) == 12
    for name in table.schema.names:
        for found, row in zip(table.column(name).to_pylist(), expected, strict=True):
            wanted = getattr(row, name)
            # float32 -> Python float -> float32 is exact, so lists compare bit for bit.
            assert found == (wanted.tolist() if isinstance(wanted, np.ndarray) else wanted)

    layout = pq.read_metadata(path).row_group(0)
    assert {layout.column(i).compression for i in range(layout.num_columns)} == {"ZSTD"}


def test_metadata_says_where_the_rows_come_from(tmp_path: Path) -> None:
    shard = record_of(b"shard", samples=5, quarantined=2, damaged=True)
    path = write_table(tmp_path / "a.parquet", shard, faults=FAULTS)
    assert json.loads(pq.read_metadata(path).metadata[b"patchsieve"]) == {
        "schema_version": 2,
        "rows_version": 1,
        "identity": row_identity(CONFIG, TEACHER.digest),
        "shard": {
            "name": "/data/a.tar",
            "size": 5,
            "tag": "tag-1",
            "sha256": shard.sha256,
            "samples": 5,
            "quarantined": 2,
            "damaged": True,
        },
        "teacher": dataclasses.asdict(TEACHER),
        "config": dataclasses.asdict(CONFIG),
        "visible": 19,
        "errors": {"rows": 3, "digest": digest_of([dataclasses.astuple(fault) for fault in FAULTS])},
        "provenance": {"run_id": "run-1"},
    }


def test_views_of_one_fixed_crop_store_their_pixels_once(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, store="view", crop="center", views=11)
    path = write_table(tmp_path / "a.parquet", record_of(b""), config=config, images=100)
    # Random bytes: nothing but the dictionary can make 1,100 rows of 20 kB take less than 22 MB.
    unique = 100 * 20_000
    assert unique < path.stat().st_size < 1.15 * unique
    group = pq.read_metadata(path).row_group(0)
    pixels = next(c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == "pixels")
    assert pixels.total_uncompressed_size < 1.01 * unique


def test_pixels_of_a_full_row_group_still_fit_their_dictionary(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, store="view", crop="center", views=2)
    row = next(make_rows(1, config))
    schema = table_schema(visible=VISIBLE, patch_bytes=PATCH_BYTES, store="view")
    random = np.random.default_rng(0)
    path = tmp_path / "a.parquet"
    with TableWriter(path, schema) as writer:
        for image in range(70):
            pixels = random.bytes(1_000_000)
            twice = [
                dataclasses.replace(row, sample_key=str(image), view=view, pixels=pixels) for view in (0, 1)
            ]
            writer.add(twice)
        writer.close({"schema_version": 1})
    # One image may be split between two groups.
    assert path.stat().st_size < 73_000_000


@pytest.mark.parametrize("store", ["patches", "view", "none"])
def test_row_groups_are_bounded_and_keep_the_order(tmp_path: Path, store: str) -> None:
    config = dataclasses.replace(CONFIG, store=store)
    limit = 100_000
    path = write_table(tmp_path / "a.parquet", record_of(b""), config=config, images=200, group_bytes=limit)
    metadata = pq.read_metadata(path)
    sizes = [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]
    assert len(sizes) > 2
    assert max(sizes) <= limit
    # Groups are filled, not cut at every call; bytes are estimated from above.
    assert np.mean(sizes[:-1]) > limit / 4
    keys = [(row.sample_key, row.view) for row in make_rows(200, config)]
    table = pq.read_table(path, columns=["sample_key", "view"])
    assert list(zip(*table.to_pydict().values(), strict=True)) == keys


def test_row_groups_are_at_most_64_mb() -> None:
    assert GROUP_BYTES <= 64_000_000


def test_memory_does_not_grow_with_the_shard(tmp_path: Path) -> None:
    def peak(images: int) -> int:
        schema = table_schema(visible=VISIBLE, patch_bytes=PATCH_BYTES, store="patches")
        with TableWriter(tmp_path / "a.parquet", schema, group_bytes=1_000_000) as writer:
            tracemalloc.start()
            before, highest = pa.total_allocated_bytes(), 0
            for image in range(images):
                writer.add(list(make_rows(1, first_image=image)))
                arrow = pa.total_allocated_bytes() - before
                highest = max(highest, arrow + tracemalloc.get_traced_memory()[0])
            tracemalloc.stop()
            assert writer.rows == 4 * images
        return highest

    small, large = peak(40), peak(400)
    assert small > 500_000  # 40 images fill more than one group
    # Ten times the images; what is loaded on the way counts, too.
    assert large < 2 * small


def test_an_unfinished_table_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    schema = table_schema(visible=VISIBLE, patch_bytes=PATCH_BYTES, store="patches")

    def break_off() -> None:
        with TableWriter(path, schema) as writer:
            writer.add(list(make_rows(2)))
            raise InfrastructureError("short read")

    with pytest.raises(InfrastructureError, match="short read"):
        break_off()
    assert not path.exists()


def test_a_table_without_rows_is_a_table(tmp_path: Path) -> None:
    # --sample may leave out every sample of a small shard.
    path = write_table(tmp_path / "a.parquet", record_of(b"shard"), images=0)
    assert read_footer(str(path)).rows == 0
    assert read_scores(str(path)).num_rows == 0


def test_rows_of_another_length_are_refused(tmp_path: Path) -> None:
    schema = table_schema(visible=VISIBLE + 1, patch_bytes=PATCH_BYTES, store="none")
    rows = list(make_rows(1, dataclasses.replace(CONFIG, store="none")))
    with TableWriter(tmp_path / "a.parquet", schema) as writer, pytest.raises(ValueError, match=r"\(19,\)"):
        writer.add(rows)


def test_verification_notices_what_is_not_there(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.parquet", record_of(b"shard"))
    footer = read_footer(str(path))
    verify_file(path, schema=footer.schema, rows=12, metadata=footer.metadata)
    with pytest.raises(InfrastructureError, match="12 rows of 13"):
        verify_file(path, schema=footer.schema, rows=13, metadata=footer.metadata)
    with pytest.raises(InfrastructureError):
        verify_file(path, schema=footer.schema, rows=12, metadata={**footer.metadata, "visible": 20})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InfrastructureError, match="does not read back as written"):
        verify_file(path, schema=footer.schema, rows=12, metadata=footer.metadata)


def test_errors_files_hold_null_keys_and_their_digest(tmp_path: Path) -> None:
    path = tmp_path / "errors.parquet"
    write_errors(path, FAULTS, "/data/a.tar", run_id="run-1")
    table = pq.read_table(path)
    assert table.schema.equals(ERRORS_SCHEMA)
    assert table.to_pylist() == [{"shard": "/data/a.tar", **dataclasses.asdict(fault)} for fault in FAULTS]
    footer = json.loads(pq.read_metadata(path).metadata[b"patchsieve"])
    assert footer["digest"] == digest_of([dataclasses.astuple(fault) for fault in FAULTS])
    assert footer["digest"] == faults_summary(FAULTS)["digest"] != faults_summary(FAULTS[:2])["digest"]
    assert faults_summary([]) == NO_ERRORS


@pytest.mark.parametrize(
    ("store", "crop"), [("patches", "random"), ("view", "random"), ("view", "center"), ("none", "random")]
)
def test_predicted_bytes_are_near_the_truth(tmp_path: Path, store: str, crop: str) -> None:
    config = dataclasses.replace(CONFIG, store=store, crop=crop)
    rows = []
    for row in make_rows(8, config):
        # Views keep the made-up 20 kB that a photograph takes as a JPEG: drawn pictures take less.
        if store == "patches":
            seen = photo_pixels(int(row.sample_key.rpartition("-")[2]), 224, 224)
            patches_LP = seen.reshape(14, 16, 14, 16, 3).transpose(0, 2, 1, 3, 4).reshape(196, -1)
            row.patches = patches_LP[row.visible].tobytes()
        rows.append(row)
    sizes = []
    for repeated in (1, 2):
        path = tmp_path / "a.parquet"
        schema = table_schema(visible=VISIBLE, patch_bytes=PATCH_BYTES, store=config.store)
        with TableWriter(path, schema) as writer:
            writer.add(rows[: len(rows) // 2 * repeated])
            writer.close({"schema_version": 1})
        sizes.append(path.stat().st_size)
    predicted = predicted_bytes(
        images=4, views=4, visible=VISIBLE, patch_size=16, size=224, crop=config.crop, store=config.store
    )
    # The difference leaves out the footer, which every file has once.
    assert predicted == pytest.approx(sizes[1] - sizes[0], rel=0.2)


def test_metadata_is_made_of_its_parts() -> None:
    metadata = table_metadata(
        config=CONFIG,
        teacher=TEACHER,
        shard=record_of(b""),
        visible=19,
        errors=NO_ERRORS,
        provenance={"run_id": "r"},
    )
    assert metadata["errors"] == {"rows": 0, "digest": ""}
    assert RowConfig(**metadata["config"]) == CONFIG
