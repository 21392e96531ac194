"""An output folder: settings fixed once, one record file per shard, and what must happen in which order.

Below the folder, for records that lie in `scores`:

    config.json                what decides the rows (settings.py)
    owner.json                 the run that writes here now (owner.py)
    scores/<shard id>.parquet  the record of a shard: with the right identity and content, the shard is done
    errors/<shard id>.parquet  samples of that shard that gave no row
    failed/<shard id>.json     attempts and reason of a shard that was given up; never decides anything
    runs/<run id>.json         what a run was asked, its shards, its summary; never decides anything
    cache/scores.parquet       footers read before (done.py); may be deleted
    parts.json, parts/*/owner.json, cache/scores-*.parquet: where runs of parts work side by side (division.py)

Commit order, safe against a kill at any point: errors file, removal of the failed record, record file, and
where the shard has no errors now, removal of an errors file of an earlier attempt. What a reader trusts: the
record's footer says whether there are errors and holds their digest; an errors file with another digest, or
beside a record that says there are none, belongs to another attempt and is not read. A failed record is
younger than the record file beside it, since committing removes it first.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from patchsieve.pipeline import storage
from patchsieve.pipeline.checks import typed
from patchsieve.pipeline.errors import DamagedFileError, UserError
from patchsieve.pipeline.output import division
from patchsieve.pipeline.output import settings as output_settings
from patchsieve.pipeline.output.done import Check, RecordFolder, State, hash_check
from patchsieve.pipeline.output.machine import Machine
from patchsieve.pipeline.output.owner import Owner
from patchsieve.pipeline.output.records import Record, RecordKind
from patchsieve.pipeline.part import Part, part_of_run
from patchsieve.pipeline.shards.specs import Shard
from patchsieve.pipeline.threads import map_threads

ERRORS_FOLDER = "errors"
FAILED_FOLDER = "failed"
RUNS_FOLDER = "runs"
CACHE_FOLDER = "cache"

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FailedRecord:
    """A shard that was given up; `size` and `tag` are those it had then."""

    shard: str
    size: int | None
    tag: str
    attempts: int
    reason: str
    run_id: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run has to do: `todo`, in the order given.

    `done`: records by shard id; `changed`: ids of shards whose record is of other content.
    """

    todo: list[Shard]
    done: dict[str, Record]
    changed: list[str]


def new_run_id(part: Part | None = None) -> str:
    """A run id that nobody else has; sorted by name, runs are sorted by time. That of a part ends with its name."""
    now = time.time()
    day = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now))
    ending = f"-{part.name}" if part is not None else ""
    return f"{day}.{int(now % 1 * 1e6):06d}Z-{uuid.uuid4().hex[:8]}{ending}"


class OutputFolder:
    """One output folder, as one run sees it. Only `acquire`, and what it starts, needs to be the owner's."""

    def __init__(
        self,
        url: str,
        kind: RecordKind,
        *,
        run_id: str,
        beside: Collection[str] = (),
        machine: Machine | None = None,
        on_lost: Callable[[], object] = lambda: None,
    ) -> None:
        """`kind`: what its records are; `beside`: folders below it that runs write other files to; `on_lost`: as
        `Owner` has it. A `run_id` that ends with a part is of a run that shares the folder with those of the other
        parts.
        """
        self.url, self.run_id, self._records = url, run_id, kind.folder
        self._beside = tuple(beside)
        self._part = part_of_run(run_id)
        self._whole = Owner(url, run_id, machine=machine)
        self._owner = Owner(division.owner_folder(url, run_id), run_id, machine=machine, on_lost=on_lost)
        self._folder = RecordFolder(
            storage.join(url, kind.folder),
            _cache_url(url, kind.folder, self._part),
            newest_schema=kind.schema_version,
        )

    def stored_config(self) -> dict[str, Any] | None:
        """What `config.json` holds: `identity`, `rows`, `other`, `run_id`; None for a new folder."""
        return output_settings.stored_config(self.url)

    def adopt_config(self, rows: Mapping[str, Any], *, other: Mapping[str, Any]) -> dict[str, Any]:
        """Fix the settings of this folder, or check that they are the ones it has; returns what is stored.

        `rows`: every field that can change a row, and nothing else: only these must agree, and the identity
        of the records is their hash. `other`: the rest of the resolved config, stored by the first run.
        Raises UserError with every field that differs.
        """
        return output_settings.adopt_config(
            self.url, rows, other=other, run_id=self.run_id, records=self._records
        )

    def acquire(self, *, heartbeat: bool = True) -> None:
        """Become the owner of the folder and remove what dead runs left half written.

        Raises UserError where a live run owns it, which may take a minute to find out, or where it is divided into
        other parts.
        """
        if self._part is not None:
            division.divide(self.url, self._part, run_id=self.run_id)
            self._whole.wait_for_none()
        self._owner.acquire(heartbeat=heartbeat)
        if self._part is None:
            try:
                division.refuse_divided(self.url)
            except UserError:
                self._owner.release()
                raise
        self.remove_temporaries()

    def remove_temporaries(self) -> None:
        """Remove what killed processes left half written; for the owner, while none of its own write."""
        folders = (self._records, ERRORS_FOLDER, FAILED_FOLDER, RUNS_FOLDER, CACHE_FOLDER, *self._beside)
        # Other parts may be writing theirs just now.
        of_runs = "" if self._part is None else f"-{self._part.name}"
        with self._owner.quiet:
            for folder in (self.url, self._owner.folder, *(storage.join(self.url, name) for name in folders)):
                storage.remove_temporaries(folder, of_runs=of_runs)

    @property
    def lost_to(self) -> str:
        """The run that was seen to have taken the folder over, empty while none was."""
        return self._owner.lost_to

    def release(self) -> None:
        """Give the folder back, if it is still ours; safe to call twice."""
        self._owner.release()

    def check(self, shards: Sequence[Shard], identity: str) -> dict[str, Check]:
        """What sizes, tags and records tell of every shard, by shard id; changes nothing."""
        return self._folder.check(shards, identity)

    def plan(
        self,
        shards: Sequence[Shard],
        identity: str,
        *,
        redo_errors: bool = False,
        verify_content: bool = False,
    ) -> Plan:
        """What is left to do, for the owner: shards with another tag are read and compared by SHA-256.

        `redo_errors`: shards with errors count as not done. `verify_content`: all shards with a record are read and
        compared, whatever their tags. One that cannot be read now is left to do. What
        was learned is kept for later runs, and failed records of shards that turn out done are removed.
        """
        checks = self.check(shards, identity)
        if verify_content:
            for key, check in checks.items():
                if check.state is State.DONE:
                    checks[key] = dataclasses.replace(check, state=State.NEEDS_HASH)
        unsure = [shard for shard in shards if checks[shard.id].state is State.NEEDS_HASH]
        settled = map_threads(lambda shard: hash_check(shard, checks[shard.id]), unsure)
        for shard, check in zip(unsure, settled, strict=True):
            checks[shard.id] = check
            if check.state is State.DONE:
                self._folder.remember_same(shard)
        done = {
            key: check.record
            for key, check in checks.items()
            if check.state is State.DONE
            and check.record is not None
            and not (redo_errors and check.record.errors)
        }
        self._tidy(done)
        self._folder.save_cache(run_id=self.run_id)
        return Plan(
            todo=[shard for shard in shards if shard.id not in done],
            done=done,
            changed=[key for key, check in checks.items() if check.state is State.CHANGED],
        )

    def _tidy(self, done: Mapping[str, Record]) -> None:
        """Remove what a run killed while committing left beside finished records."""
        for key in self.failed().keys() & done.keys():
            storage.remove(self._failed_url(key))
        for info in storage.list_folder(storage.join(self.url, ERRORS_FOLDER), suffix=".parquet"):
            record = done.get(_stem(info.url))
            if record is not None and not record.errors:
                storage.remove(info.url)

    def all_records(self, parts: int = 0) -> dict[str, Record]:
        """Every record of the folder that can be read, by shard id, whatever its identity.

        `parts`: how many the folder is divided into; what each of their runs has kept is then read.
        """
        for index in range(1, parts + 1):
            self._folder.add_cache(_cache_url(self.url, self._records, Part(index, parts)))
        return {_stem(name): record for name, record in self._folder.read().items()}

    def keep_records(self, shards: Sequence[Shard], check: Callable[[], None] = lambda: None) -> list[Shard]:
        """For the owner: keep what the records of these shards say, so that whoever looks later need not read them.

        Returns the shards that have none. `check` is called before each that is read; what it raises ends this, with
        nothing kept.
        """
        found = self._folder.read((f"{shard.id}.parquet" for shard in shards), check)
        self._folder.save_cache(run_id=self.run_id)
        return [shard for shard in shards if f"{shard.id}.parquet" not in found]

    def failed(self) -> dict[str, FailedRecord]:
        """The failed records, by shard id."""
        listed = storage.list_folder(storage.join(self.url, FAILED_FOLDER), suffix=".json")
        records = map_threads(lambda info: _read_failed(info.url), listed)
        return {_stem(info.url): record for info, record in zip(listed, records, strict=True) if record}

    def record_url(self, shard: Shard) -> str:
        """Where the record file of a shard goes."""
        return storage.join(self.url, self._records, f"{shard.id}.parquet")

    def errors_url(self, shard_id: str) -> str:
        """Where the errors file of a shard goes."""
        return storage.join(self.url, ERRORS_FOLDER, f"{shard_id}.parquet")

    def _failed_url(self, shard_id: str) -> str:
        return storage.join(self.url, FAILED_FOLDER, f"{shard_id}.json")

    def commit(self, shard: Shard, record: Path, errors: Path | None) -> None:
        """Put a finished, verified record file and its errors file (None: no errors) in place.

        Needs no ownership, and may be repeated: any node may commit, and one shard's files are always the
        same.
        """
        if errors is not None:
            storage.commit_file(errors, self.errors_url(shard.id), run_id=self.run_id)
        storage.remove(self._failed_url(shard.id))
        storage.commit_file(record, self.record_url(shard), run_id=self.run_id)
        if errors is None:
            storage.remove(self.errors_url(shard.id))

    def commit_errors(self, shard: Shard, errors: Path) -> None:
        """Put the errors file of a shard in place that gave no row at all and will be recorded as failed."""
        storage.commit_file(errors, self.errors_url(shard.id), run_id=self.run_id)

    def record_failed(self, shard: Shard, attempts: int, reason: str) -> None:
        """Write down that a shard was given up after so many attempts."""
        record = FailedRecord(
            shard=shard.name,
            size=shard.size,
            tag=shard.tag,
            attempts=attempts,
            reason=reason,
            run_id=self.run_id,
        )
        data = json.dumps(dataclasses.asdict(record), indent=1).encode()
        storage.commit_bytes(data, self._failed_url(shard.id), run_id=self.run_id)

    def write_run(
        self, content: Mapping[str, Any], *, shards: Sequence[Shard], changed: Collection[str] = ()
    ) -> None:
        """Write, or write again, what this run was asked and what came of it, as JSON.

        `changed`: shard ids whose records were outdated when the run began (see `Plan`).
        """
        names = [shard.name for shard in shards]
        # 100,000 names share most of their path. In text order, the first and the last differ soonest.
        ends = zip(min(names, default=""), max(names, default=""), strict=False)
        prefix = "".join(one for one, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], ends))
        listing = {"prefix": prefix, "names": [name[len(prefix) :] for name in names]}
        record = {**content, "run_id": self.run_id, "shards": listing, "changed": sorted(changed)}
        data = json.dumps(record, separators=(",", ":"), sort_keys=True).encode()
        storage.commit_bytes(
            data, storage.join(self.url, RUNS_FOLDER, f"{self.run_id}.json"), run_id=self.run_id
        )


def _cache_url(url: str, records: str, part: Part | None) -> str:
    name = records if part is None else f"{records}-{part.name}"
    return storage.join(url, CACHE_FOLDER, f"{name}.parquet")


def _stem(url: str) -> str:
    return url.rpartition("/")[2].rpartition(".")[0]


def _read_failed(url: str) -> FailedRecord | None:
    try:
        with storage.parsing(url):
            return typed(FailedRecord, storage.read_object(url))
    except FileNotFoundError:
        return None
    except DamagedFileError as error:
        _log.warning("%s; it is passed over", error)
        return None
