"""Rankers by name: `tiny`, which lies beside this file, or any folder or URL."""

from __future__ import annotations

from pathlib import Path

from patchsieve.pipeline.errors import UserError

BUNDLED = ("tiny",)


def resolve_ranker(name: str) -> str:
    """The folder of a ranker: that of a bundled one by its name, else the path or URL as given.

    Raises UserError for a bundled name whose folder this installation lacks.
    """
    if name not in BUNDLED:
        return name
    folder = Path(__file__).resolve().parent / name
    if not folder.is_dir():
        raise UserError(
            f"the bundled ranker {name!r} is not part of this installation: name the folder of a ranker"
        )
    return str(folder)
