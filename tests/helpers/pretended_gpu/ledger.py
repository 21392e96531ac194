"""What a pretended device was asked, and by which line of the project."""

from __future__ import annotations

import collections
import dataclasses
import functools
import sys
import threading
from types import FrameType
from typing import Any, Literal

from tests.helpers.checkout import ROOT

Kind = Literal["kernel", "upload", "download", "wait", "implicit upload"]
How = Literal["", "async", "blocking", "pageable"]
"""Of a copy: `blocking` is waited for by who asks for it; `pageable` goes by way of a pinned buffer of the driver's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """One thing that the device was asked: an operation, `bytes` read, written or copied, `largest` tensor."""

    kind: Kind
    op: str
    where: str
    how: How = ""
    bytes: int = 0
    largest: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Crossings:
    """Traffic between main memory and device. `implicit_uploads`: of index tensors that were left on the wrong side."""

    uploads: int = 0
    downloads: int = 0
    waits: int = 0
    implicit_uploads: int = 0


class Ledger:
    """Records in the order in which they came, from all threads."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self._lock = threading.Lock()

    def note(self, kind: Kind, op: str, **about: Any) -> None:
        """Add a record, with the line that is responsible."""
        record = Record(kind=kind, op=op, where=responsible(sys._getframe(1)), **about)
        with self._lock:
            self.records.append(record)

    def clear(self) -> None:
        """Forget all records."""
        self.records.clear()

    def of(self, *kinds: Kind) -> list[Record]:
        """The records of these kinds."""
        return [record for record in self.records if record.kind in kinds]

    def crossings(self) -> Crossings:
        """How often something crossed between main memory and device, or was waited for."""
        counts = collections.Counter(record.kind for record in self.records)
        return Crossings(
            uploads=counts["upload"],
            downloads=counts["download"],
            waits=counts["wait"],
            implicit_uploads=counts["implicit upload"],
        )

    def ways(self, kind: Kind) -> dict[str, int]:
        """Copies of a kind, by how they were done."""
        return dict(collections.Counter(record.how for record in self.of(kind)))

    def bytes(self, *kinds: Kind) -> int:
        """Bytes of all records of these kinds."""
        return sum(record.bytes for record in self.of(*kinds))

    def culprits(self, *kinds: Kind) -> dict[str, int]:
        """Where in the project records of these kinds come from: for the message of an assertion."""
        found = collections.Counter(f"{r.kind} {r.op} {r.how} at {r.where}" for r in self.of(*kinds))
        return dict(found.most_common())


_CHECKOUT, _TESTS = f"{ROOT}/", f"{ROOT / 'tests'}/"


def responsible(frame: FrameType | None) -> str:
    """The innermost two lines of the project on the stack, its tests aside."""
    lines: list[str] = []
    while frame is not None and len(lines) < 2:
        place = place_of(frame.f_code.co_filename)
        if place:
            lines.append(f"{place}:{frame.f_lineno}")
        frame = frame.f_back
    return " in ".join(lines) or "the test"


@functools.cache
def place_of(file: str) -> str:
    """A file of the project within the checkout; nothing for others and for tests."""
    ours = file.startswith(_CHECKOUT) and not file.startswith(_TESTS) and "site-packages" not in file
    return file.removeprefix(_CHECKOUT) if ours else ""
