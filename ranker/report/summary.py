"""What each path is, in a few lines: the page's first part."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow.compute as pc

from patchsieve.pipeline import storage
from patchsieve.pipeline.checks import flag
from patchsieve.pipeline.output.settings import stored_config
from patchsieve.pipeline.runs.status import read_status
from patchsieve.pipeline.shards.specs import expand_shards
from patchsieve.pipeline.tables.reader import ScoreTables
from patchsieve.pipeline.units import byte_size, counted
from patchsieve.ranker.gallery.from_shards import index_rows, pruned_indexes
from patchsieve.ranker.gallery.sources import Source
from patchsieve.ranker.model.checkpoint import load_ranker
from patchsieve.ranker.model.names import BASELINE_PREFIX
from patchsieve.ranker.report.outcomes import read_evaluation, read_proof

Facts = list[tuple[str, str]]

_TOLD = ("views", "mask_ratio", "crop", "masks", "estimator", "removal", "metric", "store", "seed")
"""Settings of a table that a reader asks for first."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """What a path is: its kind in words, the path, and facts as pairs of a name and a value."""

    kind: str
    path: str
    facts: Facts


def summaries(sources: Sequence[Source], *, root: str | None) -> list[Summary]:
    """One for each source; UserError for what cannot be read."""
    readers: Mapping[str, tuple[str, Callable[[Source], Facts]]] = {
        "table": ("score table", _table),
        "ranker": ("ranker", _ranker),
        "pruned": ("pruned dataset", _pruned),
        "proof": ("proof", _proof),
        "evaluation": ("evaluation", _evaluation),
        "shards": ("shards", lambda source: _shards(source, root)),
    }
    found = []
    for source in sources:
        kind, read = readers[source.kind]
        facts = [(name, value) for name, value in read(source) if value]
        found.append(Summary(kind=kind, path=source.shown, facts=facts))
    return found


def _table(source: Source) -> Facts:
    tables = ScoreTables(source.path)
    first = tables.files[0]
    settings = json.loads(first.settings)
    teacher = tables.teacher
    facts = [
        ("teacher", f"{teacher['name']}, {first.grid} x {first.grid} patches of {teacher['patch_size']} px"),
        (
            "rows",
            f"{counted(tables.rows, 'view')} of {counted(len({file.sha256 for file in tables.files}), 'shard')}",
        ),
        ("visible", f"{tables.visible} of {first.grid**2} patches in each view"),
        ("settings", ", ".join(f"{flag(name)} {settings[name]}" for name in _TOLD if name in settings)),
    ]
    return facts + _run_facts(source)


def _run_facts(source: Source) -> Facts:
    """How the last run over shards ended; nothing for a table that lies alone."""
    if source.path.endswith(".parquet") or stored_config(storage.absolute_url(source.path)) is None:
        return []
    status = read_status(storage.absolute_url(source.path))
    facts = [
        ("shards", f"{status.done:,} done, {status.missing:,} missing, {status.failed:,} failed"),
        ("samples", f"{status.samples:,}, {status.quarantined:,} of them without a row"),
    ]
    if status.errors:
        facts.append(
            (
                "errors",
                "; ".join(f"{count:,} x {reason}" for reason, count in list(status.errors.items())[:5]),
            )
        )
    if status.last_run is not None:
        facts.append(("last run", f"{status.last_run['run_id']} {status.last_run.get('state', '')}"))
    return facts


def _ranker(source: Source) -> Facts:
    if source.path.startswith(BASELINE_PREFIX):
        return [("baseline", source.path.removeprefix(BASELINE_PREFIX))]
    ranker = load_ranker(source.path, device="cpu")
    parameters = sum(parameter.numel() for parameter in ranker.model.parameters())
    blocks = f", {ranker.config.depth} blocks" if ranker.config.depth else ""
    facts = [
        (
            "model",
            f"{ranker.config.model}{blocks}, {parameters / 1e6:.1f} M parameters, head {ranker.config.head}",
        ),
        ("teacher", str(ranker.teacher["name"])),
        ("tables", f"{len(ranker.tables):,}"),
        ("softmax temperature", f"{ranker.temperature:.3g}"),
        ("digest", ranker.digest[:16]),
    ]
    agreement, step = ranker.extra.get("agreement"), ranker.extra.get("step")
    if isinstance(agreement, float) and isinstance(step, int):
        facts.append(("agreement", f"{agreement:.3f} on {ranker.extra.get('validation')}, at step {step:,}"))
    return facts


def _pruned(source: Source) -> Facts:
    config = stored_config(storage.absolute_url(source.path)) or {"rows": {}}
    rows: Mapping[str, Any] = config["rows"]
    images = kept = positions = before = after = 0
    for index in pruned_indexes(source.path):
        table = index_rows(index, ["grid", "kept", "bytes_before", "bytes_after"])
        table = table.filter(pc.is_valid(table["kept"]))
        images += len(table)
        kept += pc.sum(table["kept"]).as_py() or 0
        positions += sum(grid**2 for grid in table["grid"].to_pylist())
        before += pc.sum(table["bytes_before"]).as_py() or 0
        after += pc.sum(table["bytes_after"]).as_py() or 0
    told = {
        name: rows[name]
        for name in ("format", "codec", "quality", "size", "crop", "background")
        if name in rows
    }
    selected = {name.removeprefix("select_"): rows[name] for name in rows if name.startswith("select_")}
    facts = [
        ("patches", f"{kept:,} of {positions:,} kept, {kept / max(1, positions):.1%}, of {images:,} images"),
        ("selection", ", ".join(f"{name} {value}" for name, value in selected.items())),
        ("written", ", ".join(f"{name} {value}" for name, value in told.items())),
    ]
    if after:
        facts.append(
            ("bytes of images", f"{byte_size(before)} -> {byte_size(after)}, {after / max(1, before):.1%}")
        )
    return facts + _run_facts(source)


def _proof(source: Source) -> Facts:
    about = read_proof(source)
    with storage.parsing(storage.join(source.path, "prove.json")):
        facts = [
            (
                "data",
                f"{about['train_images']} train and {about['test_images']} test images, {about['classes']} classes",
            ),
            ("model", f"{about['protocol']} on {about['encoder']}"),
            ("selections by", str(about["ranker"])),
            ("selector", f"{about['choice']['selector']}, {about['choice']['why']}"),
        ]
        return facts + [("verdict", str(one["text"])) for one in about["verdicts"]]


def _evaluation(source: Source) -> Facts:
    about = read_evaluation(source)
    with storage.parsing(storage.join(source.path, "evaluation.json")):
        return [
            ("ranker", f"{about['ranker']['name']} ({about['ranker']['config']['model']})"),
            ("teacher", str(about["teacher"]["name"])),
            ("images", str(about["images"])),
            ("reference", f"{about['dense']['partitions']} partitions, {about['dense']['masks']} masks"),
            (
                "reliability",
                f"rho {float(about['rho']['value']):.3f}, ceiling {float(about['ceiling']['value']):.3f}",
            ),
            *(("note", str(note)) for note in about["notes"]),
        ]


def _shards(source: Source, root: str | None) -> Facts:
    shards = expand_shards([source.path], root=root)
    return [("shards", f"{len(shards):,}, {byte_size(sum(shard.size or 0 for shard in shards))}")]
