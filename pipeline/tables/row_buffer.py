"""Rows of a row group as columns, in a few large blocks of memory, until they are written.

A record batch per call would be simpler, but its hundreds of small objects lie between the blocks that the teacher
takes and gives back all the time, and up to glibc 2.37 such a hole is not found again (its bug 14581): on processors
the heap grew by a block for every batch, to several times what was in use.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_FIRST_ROWS = 64


class RowBuffer:
    """Takes rows and gives them back as one table; its memory is kept for the next rows."""

    def __init__(self, schema: pa.Schema) -> None:
        """Columns may be numbers, truth values, lists of a fixed length, texts and bytes."""
        self._schema = schema
        self._columns = {field.name: _column(field) for field in schema}
        self._rows = 0

    def __len__(self) -> int:
        return self._rows

    def add(self, rows: Sequence[object]) -> None:
        """Take the values of the rows' attributes that have the columns' names; ValueError for a wrong length.

        Column by column: beside a fast GPU it matters what Python does for each value.
        """
        if not rows:
            return
        for name, column in self._columns.items():
            column.extend([getattr(row, name) for row in rows])
        self._rows += len(rows)

    def table(self) -> pa.Table:
        """All rows, in the buffer's own memory: to be dropped before anything else is done with the buffer."""
        columns = [self._columns[field.name].array(field.type) for field in self._schema]
        return pa.Table.from_arrays(columns, schema=self._schema)

    def clear(self) -> None:
        """Forget the rows."""
        for column in self._columns.values():
            column.clear()
        self._rows = 0


class _Column(Protocol):
    def extend(self, values: list[Any]) -> None: ...
    def array(self, kind: pa.DataType) -> pa.Array: ...
    def clear(self) -> None: ...


def _column(field: pa.Field) -> _Column:
    kind = field.type
    if pa.types.is_fixed_size_list(kind):
        return _Vectors(field.name, np.dtype(kind.value_type.to_pandas_dtype()), kind.list_size)
    if pa.types.is_fixed_size_binary(kind):
        return _Bytes(field.name, kind.byte_width)
    if pa.types.is_binary(kind):
        return _Bytes(field.name, None)
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind):
        return _Numbers(np.dtype(kind.to_pandas_dtype()))
    return _Texts()


class _Numbers:
    def __init__(self, dtype: np.dtype[Any], width: int = 1) -> None:
        self._values: NDArray[Any] = np.empty((_FIRST_ROWS, width), dtype)
        self._count = 0

    def extend(self, values: list[Any]) -> None:
        stop = self._count + len(values)
        if stop > len(self._values):
            rows = max(2 * self._count, stop)
            self._values.resize((rows, self._values.shape[1]), refcheck=False)
        self._values[self._count : stop] = np.array(values, self._values.dtype).reshape(len(values), -1)
        self._count = stop

    def array(self, kind: pa.DataType) -> pa.Array:
        return pa.array(self._values[: self._count].reshape(-1), kind)

    def clear(self) -> None:
        self._count = 0


class _Vectors(_Numbers):
    def __init__(self, name: str, dtype: np.dtype[Any], width: int) -> None:
        super().__init__(dtype, width)
        self._name = name

    def extend(self, values: list[NDArray[Any]]) -> None:
        for value in values:
            if value.shape != self._values.shape[1:]:
                raise ValueError(f"{self._name} has shape {value.shape}, not {self._values.shape[1:]}")
            if not np.can_cast(value.dtype, self._values.dtype, "same_kind"):
                raise ValueError(f"{self._name} is {value.dtype}, not {self._values.dtype}")
        super().extend(values)

    def array(self, kind: pa.DataType) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(super().array(kind.value_type), type=kind)


class _Bytes:
    def __init__(self, name: str, width: int | None) -> None:
        self._name, self._width = name, width
        self._data = bytearray()
        self._ends = [0]

    def extend(self, values: list[bytes]) -> None:
        for value in values:
            if self._width is not None and len(value) != self._width:
                raise ValueError(f"{self._name} has {len(value)} bytes, not {self._width}")
            self._data += value
            self._ends.append(len(self._data))

    def array(self, kind: pa.DataType) -> pa.Array:
        places = [] if self._width is not None else [pa.py_buffer(np.asarray(self._ends, np.int32))]
        return pa.Array.from_buffers(kind, len(self._ends) - 1, [None, *places, pa.py_buffer(self._data)])

    def clear(self) -> None:
        self._data.clear()
        del self._ends[1:]


class _Texts:
    def __init__(self) -> None:
        self._values: list[str] = []

    def extend(self, values: list[str]) -> None:
        self._values += values

    def array(self, kind: pa.DataType) -> pa.Array:
        return pa.array(self._values, kind)

    def clear(self) -> None:
        self._values.clear()
