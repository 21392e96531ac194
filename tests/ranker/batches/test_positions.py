"""Positions in tables that no view has: told with file and row, before anything is looked up by them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from patchsieve.pipeline.errors import DamagedFileError
from patchsieve.pipeline.tables.reader import ScoreTables
from patchsieve.ranker.batches.index import index_tables
from patchsieve.ranker.batches.rows import StoredRows
from tests.helpers.tables import VISIBLE, make_shard, shard_record, write_table


@pytest.mark.parametrize(("at", "value"), [(0, -1), (VISIBLE - 1, 196), (3, 0)])
def test_positions_that_no_grid_has_are_damage(tmp_path: Path, at: int, value: int) -> None:
    path = write_table(tmp_path / "a.parquet", shard_record(make_shard(b""), b""))
    metadata = pq.read_metadata(path).metadata[b"patchsieve"]
    table = pq.read_table(path)
    visible = table["visible"].combine_chunks()
    numbers = visible.flatten().to_numpy().copy().reshape(-1, VISIBLE)
    numbers[5, at] = value
    column = pa.FixedSizeListArray.from_arrays(pa.array(numbers.reshape(-1), pa.int16()), type=visible.type)
    changed = table.set_column(table.schema.names.index("visible"), table.schema.field("visible"), column)
    pq.write_table(changed.replace_schema_metadata({"patchsieve": metadata}), path)
    index = index_tables(ScoreTables(str(path)), context="visible")
    with pytest.raises(DamagedFileError, match=r"a\.parquet row 5 names patches"):
        StoredRows(index, 0, held_out=False)
