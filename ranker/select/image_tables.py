"""The score tables behind the images of a dataset: which tables are of which shard, and that they can be compared."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.output.done import content_digest
from patchsieve.pipeline.output.settings import describe_differences
from patchsieve.pipeline.shards.specs import Shard
from patchsieve.pipeline.tables.reader import ScoreTables, TableFile
from patchsieve.pipeline.threads import map_threads

FREE_SETTINGS = ("first_view", "views", "seed", "sample", "store", "image_field")
"""Settings of scoring that leave the scores of images comparable; in all others tables must agree."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ScoredShard:
    """The tables of one shard's content, by number of their first view, and its SHA-256."""

    urls: tuple[str, ...]
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageTables:
    """The tables of a dataset: `of` each shard, by shard id; a shard that was not scored has none.

    `identities`: of the rows of all tables, sorted; tables of more shards leave them as they are.
    """

    of: Mapping[str, ScoredShard]
    identities: tuple[str, ...]


def find_image_tables(sources: Sequence[str], shards: Sequence[Shard]) -> ImageTables:
    """Open score tables (see `ScoreTables`) and find those of each shard: by its name, else by its content.

    A shard that no table names is read for its SHA-256 if a table is of one of its size. Raises UserError where tables
    cannot be compared, where one names a shard of another size, and where none is of any shard.
    """
    files = ScoreTables(sources).files
    _check_comparable(files)
    by_name: dict[str, list[TableFile]] = defaultdict(list)
    by_content: dict[str, list[TableFile]] = defaultdict(list)
    for file in sorted(files, key=lambda file: file.first_view):
        by_name[file.shard].append(file)
        by_content[file.sha256].append(file)
    sizes = {file.size for file in files}
    unnamed = [shard for shard in shards if shard.name not in by_name and shard.size in sizes]
    digests = map_threads(content_digest, [shard.url for shard in unnamed])
    content = dict(zip((shard.id for shard in unnamed), digests, strict=True))
    content |= {shard.id: _named(shard, by_name[shard.name]) for shard in shards if shard.name in by_name}
    of = {
        key: ScoredShard(urls=tuple(file.url for file in by_content[sha256]), sha256=sha256)
        for key, sha256 in content.items()
        if sha256 in by_content
    }
    if not of:
        raise UserError(
            f"no table is of any of the shards: {files[0].url} is of {files[0].shard}, the first shard is "
            f"{shards[0].name}; give the --root that they were scored with"
        )
    return ImageTables(of=of, identities=tuple(sorted({file.identity for file in files})))


def _named(shard: Shard, files: Sequence[TableFile]) -> str:
    """The SHA-256 of the content that the tables which name this shard are of."""
    first = files[0]
    for file in files:
        if file.size != shard.size:
            raise UserError(
                f"{shard.name} has {shard.size} bytes, the shard that {file.url} was scored from had {file.size}: "
                "score it again"
            )
        if file.sha256 != first.sha256:
            raise UserError(
                f"{first.url} and {file.url} are of different contents of {shard.name}: leave one out"
            )
    return first.sha256


def _check_comparable(files: Sequence[TableFile]) -> None:
    """Refuse tables whose scores were made in different ways."""
    first = files[0]
    kept = _compared(first.settings)
    for settings, file in {file.settings: file for file in files}.items():
        differences = describe_differences(kept, _compared(settings))
        if differences:
            raise UserError(
                f"scores of {first.url} and {file.url} cannot be compared: {'; '.join(differences)}. Give tables that "
                "were scored alike"
            )


def _compared(settings: str) -> dict[str, object]:
    return {name: value for name, value in json.loads(settings).items() if name not in FREE_SETTINGS}
