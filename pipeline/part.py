"""One part of many that shards are divided into, by their ids: for runs that share nothing but storage."""

from __future__ import annotations

import dataclasses
import hashlib
import re

from patchsieve.pipeline.errors import UserError

MOST_PARTS = 10_000
"""Each has files of its own that others look for."""

_GIVEN = re.compile(r"(\d{1,6})/(\d{1,6})", re.ASCII)
_AT_END = re.compile(r"-(\d+)-of-(\d+)$", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Part:
    """Part `index` of `count`, from 1 to count."""

    index: int
    count: int

    @property
    def name(self) -> str:
        """As files and run ids are named."""
        return f"{self.index}-of-{self.count}"

    def takes(self, shard_id: str) -> bool:
        """Whether a shard is of this part: its id alone decides, so that it stays there when others come."""
        digest = hashlib.sha256(shard_id.encode()).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.index - 1

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def parse_part(text: str | None) -> Part | None:
    """What `--part` says, None without it. Raises UserError."""
    if text is None:
        return None
    found = _GIVEN.fullmatch(text)
    part = Part(int(found[1]), int(found[2])) if found else None
    if part is None or not 1 <= part.index <= part.count <= MOST_PARTS:
        raise UserError(
            f"--part is {text!r}, must be I/N with I from 1 to N, such as 3/8, and N at most {MOST_PARTS}"
        )
    return part


def part_of_run(run_id: str) -> Part | None:
    """The part that a run works on, which its id ends with; None for one that works on the whole."""
    found = _AT_END.search(run_id)
    return Part(int(found[1]), int(found[2])) if found else None
