"""Requests and seconds of looking at a fleet: `status` of an output of many tables, and a tick over many corpora.

A store on this machine lists a thousand names a request, as real ones do; its answers take no time on the way, so
requests are the figure to multiply with a real store's. `status` is asked of a run that has ended, which keeps what the
footers of its tables say, and of one that has kept nothing yet; the tick of corpora that are scored, and of new ones.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tyro

from benchmarks._common import show, write_json
from benchmarks._fresh_process import run_fresh
from benchmarks._listed_outputs import BUCKET, CONFIG, RUN_ID, cache_of, run_of, table_of
from benchmarks._listing_server import serve_listing
from patchsieve.pipeline.schedule.history import SubmittedJob
from patchsieve.pipeline.shards.specs import shard_id

MB = 1e6
SHARDS = 10
"""Of one corpus."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Benchmark of looking at a fleet, on this machine."""

    tables: int = 10_000
    """Tables of the output that `status` is asked of."""
    corpora: int = 1_000
    """Corpora of a tick, of ten shards each."""
    out: Path = Path("bench-out/fleet.json")
    """Results as JSON."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Store:
    """Keys that are listed, sorted, and the content of some."""

    keys: tuple[str, ...]
    objects: dict[str, bytes]


def one_output(count: int, folder: Path, *, ended: bool) -> Store:
    """An output of so many tables, of a run that `ended` or goes on."""
    shards = [f"corpus/photos-{number:0{len(str(count))}d}.tar" for number in range(count)]
    tables = {f"out/scores/{shard_id(f'{BUCKET}/{shard}')}.parquet": shard for shard in shards}
    objects = {"out/config.json": CONFIG, f"out/runs/{RUN_ID}.json": run_of(shards)}
    cache = "out/cache/scores.parquet"
    keys = tuple(sorted([*shards, *tables, *objects, *([cache] if ended else [])]))
    if ended:
        objects[cache] = cache_of(tables, {key: place for place, key in enumerate(keys)}, folder)
    else:
        objects |= dict.fromkeys(tables, table_of(shards[0]))
    return Store(keys=keys, objects=objects)


def many_corpora(count: int, folder: Path, *, scored: bool) -> Store:
    """Complete corpora; `scored`: each by a job of its own, which has ended."""
    job = SubmittedJob(id="job", submitted=1.0, shards=SHARDS, contents="", state="succeeded", ended=2.0)
    keys: list[str] = []
    objects: dict[str, bytes] = {}
    tables: dict[str, dict[str, str]] = {}
    for number in range(count):
        corpus = f"{number:0{len(str(count))}d}"
        shards = [f"corpora/{corpus}/{shard:02d}.tar" for shard in range(SHARDS)]
        keys += [*shards, f"corpora/{corpus}/_SUCCESS"]
        if scored:
            out = f"out/{corpus}"
            tables[out] = {f"{out}/scores/{shard_id(f'{BUCKET}/{shard}')}.parquet": shard for shard in shards}
            objects[f"{out}/config.json"] = CONFIG
            objects[f"{out}/runs/{RUN_ID}.json"] = run_of(shards)
            objects[f"{out}/schedule/job.json"] = json.dumps(dataclasses.asdict(job)).encode()
            keys += [*tables[out], f"{out}/cache/scores.parquet"]
    keys = sorted([*keys, *objects])
    places = {key: place for place, key in enumerate(keys)}
    for out, of_shards in tables.items():
        objects[f"{out}/cache/scores.parquet"] = cache_of(of_shards, places, folder)
    return Store(keys=tuple(keys), objects=objects)


def asked_of(store: Store, name: str, **arguments: str) -> dict[str, Any]:
    """What a fresh process takes, and how many requests it made."""
    with serve_listing(store.keys, store.objects) as server:
        result: dict[str, Any] = run_fresh(name, arguments, server.environment)
    return {**result, "requests": server.requests}


def main(options: Options) -> None:
    """Measure, print a table, write the JSON."""

    def status(folder: Path, *, ended: bool) -> dict[str, Any]:
        found = asked_of(one_output(options.tables, folder, ended=ended), "status", out=f"{BUCKET}/out")
        assert found["done"] == options.tables, found
        return found

    def tick(folder: Path, *, scored: bool) -> dict[str, Any]:
        store = many_corpora(options.corpora, folder, scored=scored)
        found = asked_of(store, "tick", source=f"{BUCKET}/corpora/*/", out=f"{BUCKET}/out")
        assert list(found["outcomes"].values()) == [options.corpora], found["outcomes"]
        return found

    cases: dict[str, Callable[[Path], dict[str, Any]]] = {
        "status after the run": lambda folder: status(folder, ended=True),
        "status, nothing kept": lambda folder: status(folder, ended=False),
        "tick, all scored": lambda folder: tick(folder, scored=True),
        "tick, all new": lambda folder: tick(folder, scored=False),
    }
    results = {}
    for title, case in cases.items():
        with tempfile.TemporaryDirectory() as folder:
            results[title] = case(Path(folder))
    show(
        f"Looking at {options.tables:,} tables, and at {options.corpora:,} corpora",
        ["", "requests", "seconds", "of a processor", "MB at the peak"],
        [
            [
                title,
                f"{found['requests']:,}",
                f"{found['seconds']:.1f}",
                f"{found['processor_seconds']:.1f}",
                f"{found['peak'] / MB:.0f}",
            ]
            for title, found in results.items()
        ],
    )
    write_json({"fleet": results}, options.out)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
