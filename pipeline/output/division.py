"""An output folder that is divided: runs of its parts work side by side, each with an owner file of its own.

`parts.json` holds how many parts there are, and is written by the first of them. A part writes it, then looks for an
owner of the whole folder; a run over the whole becomes the owner, then looks for `parts.json`. Of two that start at one
moment, one at least sees the other.
"""

from __future__ import annotations

import json
from typing import Any

from patchsieve.pipeline import storage
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.output.owner import create_once
from patchsieve.pipeline.part import MOST_PARTS, Part, part_of_run

PARTS_FILE = "parts.json"
PARTS_FOLDER = "parts"


def owner_folder(out: str, run_id: str) -> str:
    """The folder in which the owner file of a run lies: that of its part, or the output itself."""
    part = part_of_run(run_id)
    return out if part is None else _part_folder(out, part)


def owner_folders(out: str) -> list[str]:
    """The folders in which owner files may lie: the output, and those of its parts. UserError as `part_count`."""
    count = part_count(out) or 0
    return [out, *(_part_folder(out, Part(index + 1, count)) for index in range(count))]


def _part_folder(out: str, part: Part) -> str:
    return storage.join(out, PARTS_FOLDER, part.name)


def part_count(out: str) -> int | None:
    """How many parts an output is divided into, None for one that is not. Raises UserError for a damaged file."""
    url = storage.join(out, PARTS_FILE)
    try:
        with storage.parsing(url):
            count: Any = storage.read_object(url)["parts"]
            if type(count) is not int or not 1 <= count <= MOST_PARTS:
                raise ValueError(f"{count!r} is no number of parts")
    except FileNotFoundError:
        return None
    return int(count)


def divide(out: str, part: Part, *, run_id: str) -> None:
    """Divide an output into the parts of which this is one; raises UserError where it is divided otherwise."""
    data = json.dumps({"parts": part.count, "run_id": run_id}).encode()
    create_once(storage.join(out, PARTS_FILE), data, run_id=run_id)
    count = part_count(out)
    if count != part.count:
        raise UserError(
            f"{out} is divided into {count} parts, and --part {part} is one of {part.count} (there -> asked for: "
            f"{count} -> {part.count}): ask for --part I/{count}. {_UNDO}"
        )


def refuse_divided(out: str) -> None:
    """Raise UserError where an output is divided: a run over the whole would work beside its parts."""
    count = part_count(out)
    if count is not None:
        raise UserError(f"{out} is divided into {count} parts: ask for --part I/{count}. {_UNDO}")


_UNDO = f"To divide it anew, remove {PARTS_FILE} there while no part runs"
