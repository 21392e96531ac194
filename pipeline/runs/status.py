"""What an output folder holds: done, missing and failed shards, rows, errors by reason. Changes nothing."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import tyro

from patchsieve.pipeline import storage
from patchsieve.pipeline.errors import DamagedFileError, UserError
from patchsieve.pipeline.output.beside import lost_outputs
from patchsieve.pipeline.output.division import part_count
from patchsieve.pipeline.output.faults import read_errors
from patchsieve.pipeline.output.folder import RUNS_FOLDER, OutputFolder
from patchsieve.pipeline.output.owner import owner_of
from patchsieve.pipeline.output.records import Record, RecordKind
from patchsieve.pipeline.output.settings import CONFIG_FILE, records_of, stored_config
from patchsieve.pipeline.part import Part, part_of_run
from patchsieve.pipeline.runs.end import LISTED, listed
from patchsieve.pipeline.shards.specs import shard_id
from patchsieve.pipeline.threads import map_threads

_log = logging.getLogger(__name__)

NOT_BEGUN = "not begun"
COMPLETE = "complete"

_RUN_LIMIT = 2**30
_OTHER_ATTEMPT = "errors file is of another attempt: reasons unknown"


@dataclasses.dataclass(frozen=True, kw_only=True)
class StatusConfig:
    """Say what of an output folder is done, missing or failed; exits 1 while something is."""

    out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """Output folder of a score or prune run (any fsspec URL)."""
    json: bool = False
    """Print JSON instead of lines."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderStatus:
    """Counts are of shards, but for `rows`, `samples` and `quarantined` (samples that gave no row).

    `done`, `rows` and what follows cover every record with the identity of `config.json`; `missing` and
    `failed` the shards of the last run, as it found them: shards are not looked at. `errors`: samples by
    stage and reason, most frequent first; `failures`: reason by shard name; `lost`: what is gone of a shard that was
    done, by its name, as far as listings tell: its tar, or its record where the last run ended and did not leave it
    undone; `last_run`: what `runs/` says of it, without its shards; `owner`: content of `owner.json`, None where no
    run is writing (or one that died was not followed by another). `parts`: of an output that runs of parts work on,
    the state of each part's last run; the shards of one that has not begun are not known, and not among the missing.
    """

    url: str
    done: int
    missing: int
    failed: int
    damaged: int
    rows: int
    samples: int
    quarantined: int
    errors: dict[str, int]
    failures: dict[str, str]
    lost: dict[str, str]
    last_run: dict[str, Any] | None
    owner: dict[str, Any] | None
    parts: dict[str, str]

    @property
    def complete(self) -> bool:
        """Whether nothing is missing or failed, as far as runs have told."""
        return not (self.missing or self.failed or NOT_BEGUN in self.parts.values())


def read_status(url: str) -> FolderStatus:
    """Status of an output folder. Raises UserError where there is none, InfrastructureError."""
    config, count = stored_config(url), part_count(url)
    runs = _last_runs(url, count)
    run = max((run for run in runs.values() if run), key=lambda run: str(run["run_id"]), default=None)
    output = OutputFolder(url, RecordKind(records_of(config), None), run_id="status")
    owner = owner_of(url)
    if config is None and run is None and owner is None:
        raise UserError(
            f"{url} is no output folder of patchsieve: it has neither {CONFIG_FILE} nor {RUNS_FOLDER}/"
        )
    records = output.all_records(count or 0)
    if run is None and owner is None and not records:
        raise UserError(
            f"{url} holds no run over shards, which is what status tells of: {RUNS_FOLDER}/ is missing"
        )
    identity = config["identity"] if config is not None else None
    done = {key: record for key, record in records.items() if record.identity == identity}
    asked, outdated = _shards_of([run for run in runs.values() if run], done)
    failures = {}
    for key, failure in output.failed().items():
        record = done.get(key)
        # Removed before a record is committed, so this failure came later; of the same content it decides
        # nothing.
        if record is None or key in outdated or (failure.size, failure.tag) != (record.size, record.tag):
            failures[key] = failure
    done = {key: record for key, record in done.items() if key not in outdated and key not in failures}
    lost = {done[key].name: reason for key, reason in lost_outputs(url, done).items()}
    done = {key: record for key, record in done.items() if record.name not in lost}
    missing = asked.keys() - done.keys() - failures.keys()
    told = [run.get("missing") for run in runs.values() if run]
    left = [names for names in told if isinstance(names, list)]
    if left and len(left) == len(told):
        # Runs that ended say which shards they left undone.
        gone = sorted(missing - outdated - {shard_id(str(name)) for name in itertools.chain(*left, lost)})
        lost |= {asked[key]: f"{records_of(config)}/{key}.parquet is gone, or cannot be read" for key in gone}
    return FolderStatus(
        url=url,
        done=len(done),
        missing=len(missing | {shard_id(name) for name in lost}),
        failed=len(failures),
        damaged=sum(record.damaged for record in done.values()),
        rows=sum(record.rows for record in done.values()),
        samples=sum(record.samples for record in done.values()),
        quarantined=sum(record.quarantined for record in done.values()),
        errors=_count_errors(output, done),
        failures={failure.shard: failure.reason for failure in failures.values()},
        lost=lost,
        last_run=None if run is None else {key: run[key] for key in run.keys() - {"shards", "changed"}},
        owner=owner,
        parts={
            str(part): str(run.get("state", "")) if run else NOT_BEGUN for part, run in runs.items() if part
        },
    )


def last_run(url: str) -> dict[str, Any] | None:
    """What `runs/` says of the newest run of an output folder that left a whole record; None where there was none."""
    return _newest(_run_files(url))


def _last_runs(url: str, count: int | None) -> dict[Part | None, dict[str, Any] | None]:
    """The newest run of each part; without a `count` of parts the newest of all, for no part."""
    files = _run_files(url)
    if count is None:
        return {None: _newest(files)}
    by_part: dict[Part | None, list[storage.ObjectInfo]] = defaultdict(list)
    for info in files:
        by_part[part_of_run(storage.split_name(info.url)[1].removesuffix(".json"))].append(info)
    parts = [Part(index, count) for index in range(1, count + 1)]
    return dict(zip(parts, map_threads(lambda part: _newest(by_part[part]), parts), strict=True))


def _run_files(url: str) -> list[storage.ObjectInfo]:
    return storage.list_folder(storage.join(url, RUNS_FOLDER), suffix=".json")


def _newest(files: Sequence[storage.ObjectInfo]) -> dict[str, Any] | None:
    # Run ids sort by time (`new_run_id`).
    for info in reversed(files):
        try:
            return _read_run(info.url)
        except FileNotFoundError:
            continue
        except DamagedFileError as error:
            _log.warning("%s; it is passed over", error)
    return None


def _read_run(url: str) -> dict[str, Any]:
    with storage.parsing(url):
        run = storage.read_object(url, limit=_RUN_LIMIT)
        listing = run["shards"]
        texts = [run["run_id"], listing["prefix"], *listing["names"], *run["changed"]]
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("its run, shards and changes are no names")
        return run


def _shards_of(
    runs: Sequence[Mapping[str, Any]], done: Mapping[str, Record]
) -> tuple[dict[str, str], set[str]]:
    """Names of the runs' shards by id, and the ids whose records were outdated and have not been written again."""
    names = [run["shards"]["prefix"] + name for run in runs for name in run["shards"]["names"]]
    outdated = {
        key for run in runs for key in run["changed"] if key in done and done[key].run_id != run["run_id"]
    }
    return {shard_id(name): name for name in names}, outdated


def _count_errors(output: OutputFolder, done: Mapping[str, Record]) -> dict[str, int]:
    with_errors = [key for key, record in done.items() if record.errors]
    found = map_threads(lambda key: read_errors(output.errors_url(key), done[key].errors), with_errors)
    counts = Counter[str]()
    for key, counted in zip(with_errors, found, strict=True):
        counts.update({_OTHER_ATTEMPT: max(1, done[key].quarantined)} if counted is None else counted)
    return dict(counts.most_common())


def status_lines(status: FolderStatus) -> list[str]:
    """What `patchsieve status` prints."""
    lines = [
        f"shards   {status.done} done, {status.missing} missing, {status.failed} failed, {status.damaged} damaged",
        f"rows     {status.rows:,} of {status.samples:,} samples, {status.quarantined:,} of them without a row",
    ]
    lines += [f"error    {count:>7,}  {reason}" for reason, count in list(status.errors.items())[:LISTED]]
    lines += listed("missing ", [f"{name}: {reason}" for name, reason in status.lost.items()])
    lines += listed("failed  ", [f"{name}: {reason}" for name, reason in status.failures.items()])
    lines += listed(
        "part    ", [f"{part} {state}" for part, state in status.parts.items() if state != COMPLETE]
    )
    if status.last_run is not None:
        lines.append(f"last run {status.last_run['run_id']} {status.last_run.get('state', '')}")
    if status.owner is not None:
        lines.append(f"owner    run {status.owner.get('run_id')} on {status.owner.get('host')}")
    return lines
