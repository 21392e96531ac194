"""What OUT says of a training: its settings, so that it goes on as it began.

`train.yaml` holds the settings as `--config` reads them back; `training.json` is written once, before anything else,
and decides whether a later run may go on.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from patchsieve.pipeline import storage
from patchsieve.pipeline.checks import typed
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.identity import canonical_json
from patchsieve.pipeline.output.owner import create_once
from patchsieve.pipeline.runs.config_file import config_to_yaml, with_run_id
from patchsieve.ranker.model.checkpoint import RANKER_FILE
from patchsieve.ranker.train.config import TrainConfig
from patchsieve.ranker.train.plan import TrainPlan

RECORD_FILE = "training.json"
TRAIN_SETTINGS = "train.yaml"

_FORMAT = "patchsieve training"
# Settings that a run may change when it goes on: where things are, how it runs, and how long.
_FREE = {
    *("tables", "out", "teacher", "images", "root", "unsorted", "resume", "log_format", "dry_run"),
    *(
        "workers",
        "gpus_per_worker",
        "accumulate",
        "checkpoint_minutes",
        "max_restarts",
        "stall_timeout",
        "decode_pixels",
        "measure_every",
        "views_per_image",
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainRecord:
    """What `training.json` holds. `run_id`: of the run that began."""

    run_id: str
    index: str
    rows: dict[str, Any]
    settings: dict[str, Any]


def begun(out: str) -> TrainRecord | None:
    """The record of the training in a folder, None where there is none.

    Raises UserError for a folder that holds something else, and for a damaged record.
    """
    url = storage.join(out, RECORD_FILE)
    try:
        with storage.parsing(url):
            found = storage.read_object(url)
            if found.pop("format") != _FORMAT:
                raise ValueError("of another program")
            return typed(TrainRecord, found)
    except FileNotFoundError:
        if storage.exists(storage.join(out, RANKER_FILE)):
            raise UserError(
                f"{out} holds the {RANKER_FILE} of something else: choose another --out"
            ) from None
        return None


def check_resume(plan: TrainPlan, record: TrainRecord | None) -> None:
    """Refuse, by a UserError that names what differs, a run that may not go on with the training in its folder."""
    if record is None:
        return
    out = plan.config.out
    if not plan.config.resume:
        raise UserError(f"{out} holds a training: add --resume to go on with it, or choose another folder")
    asked = _settings(plan.config)
    # A setting that came later had the value that is its default now.
    defaults = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
    stored = {**{name: defaults.get(name) for name in asked}, **record.settings}
    differing = [
        f"{name}: {stored.get(name)} -> {asked.get(name)}"
        for name in sorted(asked.keys() | stored.keys())
        if stored.get(name) != asked.get(name)
    ]
    if differing:
        raise UserError(
            f"{out} was begun with other settings (there -> asked for): {'; '.join(differing)}. Ask for the same, or "
            "choose another folder"
        )
    if record.index != plan.index.digest or record.rows != _plain(plan.rows):
        raise UserError(
            f"{out} was begun with other tables: their shards, views or rows differ. Give the same, or choose another "
            "folder"
        )


def begin(plan: TrainPlan, *, run_id: str) -> None:
    """Write the record of a new training; raises UserError where another run did."""
    record = TrainRecord(
        run_id=run_id,
        index=plan.index.digest,
        rows=_plain(plan.rows),
        settings=_settings(plan.config),
    )
    data = json.dumps({"format": _FORMAT, **dataclasses.asdict(record)}, indent=1).encode()
    out = plan.config.out
    if not create_once(storage.join(out, RECORD_FILE), data, run_id=run_id):
        raise UserError(f"{out}: another run began a training there just now: choose another folder")


def write_settings(config: TrainConfig, *, run_id: str) -> None:
    """Keep the settings of the latest run beside the ranker."""
    settings = with_run_id(config_to_yaml(config), run_id)
    storage.commit_bytes(settings, storage.join(config.out, TRAIN_SETTINGS), run_id=run_id)


def _settings(config: TrainConfig) -> dict[str, Any]:
    settings = {key: value for key, value in storage.kept_settings(config).items() if key not in _FREE}
    return _plain(settings)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives them back."""
    plain: dict[str, Any] = json.loads(canonical_json(values))
    return plain
