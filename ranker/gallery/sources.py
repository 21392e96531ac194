"""What a path holds: a table, a ranker, a pruned dataset, a proof, an evaluation, or shards."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from patchsieve.pipeline import storage
from patchsieve.pipeline.errors import DamagedFileError, UserError
from patchsieve.pipeline.pruned.index import INDEX
from patchsieve.pipeline.shards.specs import is_shard_name
from patchsieve.pipeline.tables.reader import TABLE_SUFFIX
from patchsieve.pipeline.tables.schema import SCORES
from patchsieve.ranker.evaluate.report import REPORT_FILE as EVALUATION_FILE
from patchsieve.ranker.model.checkpoint import RANKER_FILE
from patchsieve.ranker.model.names import needs_no_file

Kind = Literal["table", "ranker", "pruned", "proof", "evaluation", "shards"]

PROOF_FILE = "prove.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A path as the user gave it, and what it holds."""

    kind: Kind
    path: str

    @property
    def shown(self) -> str:
        """The path without secrets."""
        return storage.redact(self.path)


def find_sources(paths: Sequence[str]) -> list[Source]:
    """What each path holds, in order; UserError for one that holds nothing of ours."""
    return [Source(kind=_kind_of(path), path=path) for path in paths]


def _kind_of(path: str) -> Kind:
    if needs_no_file(path):
        return "ranker"
    if path.endswith(TABLE_SUFFIX):
        return "table"
    url = storage.absolute_url(path)
    name = storage.split_name(url.rstrip("/"))[1]
    if path.startswith("@") or is_shard_name(name) or storage.has_pattern(url) or "{" in path:
        return "shards"
    return _kind_of_folder(url, path)


def _kind_of_folder(url: str, path: str) -> Kind:
    files: tuple[tuple[str, Kind], ...] = ((PROOF_FILE, "proof"), (EVALUATION_FILE, "evaluation"))
    for file, kind in files:
        if storage.exists(storage.join(url, file)):
            return kind
    about = _config_of(url)
    if str(about.get("format", "")).startswith("patchsieve ranker"):
        return "ranker"
    folders: tuple[tuple[str, Kind], ...] = (
        (INDEX.folder, "pruned"),
        (SCORES.folder, "table"),
        ("", "table"),
    )
    for folder, kind in folders:
        where = storage.join(url, folder) if folder else url
        if storage.list_folder(where, suffix=TABLE_SUFFIX):
            return kind
    if storage.list_folder(url, suffix=".tar"):
        return "shards"
    raise UserError(
        f"{storage.redact(path)} is none of what can be shown: the output of score, train, evaluate, prove or prune, a "
        "table (.parquet), or shards (.tar)"
    )


def _config_of(url: str) -> dict[str, Any]:
    try:
        return storage.read_object(storage.join(url, RANKER_FILE))
    except (FileNotFoundError, DamagedFileError):
        return {}
