"""The settings of an output folder: `config.json`, created by its first run and never changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from patchsieve.pipeline import storage
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.identity import canonical_json, digest_of
from patchsieve.pipeline.output.owner import create_once

CONFIG_FILE = "config.json"
# Written only where it is another one: outputs of score runs came first.
_FOLDER_NOT_TOLD = "scores"
_SHOWN_CHARACTERS = 60


def stored_config(folder: str) -> dict[str, Any] | None:
    """What `config.json` holds: `identity`, `rows`, `other`, `run_id`, `records`; None for a new folder.

    Raises UserError.
    """
    url = storage.join(folder, CONFIG_FILE)
    try:
        with storage.parsing(url):
            stored = storage.read_object(url)
        if str(kind := stored.get("format")).startswith("patchsieve "):
            what = str(kind).removeprefix("patchsieve ")
            raise UserError(
                f"{folder} holds a {what}, not a run over shards: patchsieve report shows what it is"
            )
        with storage.parsing(url):
            rows, records = stored["rows"], stored.get("records", _FOLDER_NOT_TOLD)
            if not isinstance(rows, dict) or stored["identity"] != digest_of(rows):
                raise ValueError("its identity is not that of its rows")
            if not isinstance(records, str) or "/" in records:
                raise ValueError(f"records lie in no folder {records!r}")
    except FileNotFoundError:
        return None
    return stored


def records_of(stored: Mapping[str, Any] | None) -> str:
    """Name of the folder of record files that `config.json` tells; that of score tables where it tells none."""
    return str((stored or {}).get("records", _FOLDER_NOT_TOLD))


def adopt_config(
    folder: str,
    rows: Mapping[str, Any],
    *,
    other: Mapping[str, Any],
    run_id: str,
    records: str,
) -> dict[str, Any]:
    """Fix the settings of a folder or check that they are the ones it has: `OutputFolder.adopt_config`."""
    url = storage.join(folder, CONFIG_FILE)
    content: dict[str, Any] = {
        "identity": digest_of(rows),
        "rows": dict(rows),
        "other": dict(other),
        "run_id": run_id,
    }
    if records != _FOLDER_NOT_TOLD:
        content["records"] = records
    data = json.dumps(content, indent=1, sort_keys=True).encode()
    if create_once(url, data, run_id=run_id):
        return content
    stored = stored_config(folder)
    if stored is None:
        raise UserError(f"{url} was removed while this run started")
    differences = describe_differences(stored["rows"], json.loads(canonical_json(rows)))
    if differences:
        raise UserError(
            f"{folder} holds rows made with other settings (there -> asked for): {'; '.join(differences)}. "
            f"Ask for the same, or write to another folder{_other_views(stored['rows'], rows)}"
        )
    return stored


def describe_differences(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Every setting that differs, as `name: stored -> asked`."""
    return [
        f"{_OPTIONS.get(name, name)}: {_shown(stored, name)} -> {_shown(asked, name)}"
        for name in sorted(stored.keys() | asked.keys())
        if name not in stored or name not in asked or stored[name] != asked[name]
    ]


_OPTIONS = {
    "select_count": "--keep, in patches of an image",
    "select_mass": "--mass",
    "select_target": "--target-ratio",
    "select_way": "--select",
    "select_windows": "--windows",
    "select_compactness": "--compactness",
    "views": "--views",
}
"""What settings are called that have another name on the command line."""


def _other_views(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """How to add views, where more of them are all that is asked for."""
    if {name for name in stored if stored[name] != asked.get(name)} != {"views"} or asked["views"] <= stored[
        "views"
    ]:
        return ""
    first = stored["first_view"] + stored["views"]
    last = asked["first_view"] + asked["views"]
    return f"; to add views, give --views {first}:{last} with another --out, and both outputs to train"


def _shown(fields: Mapping[str, Any], name: str) -> str:
    if name not in fields:
        return "not set"
    text = str(fields[name])
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
