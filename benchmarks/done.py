"""Requests, seconds and memory of deciding which of many shards on an object store are done.

A store on this machine lists shards and tables a thousand a request, as real ones do; its answers take no time on the
way, so requests are the figure to multiply with a real store's. With the cache of table footers that the run before
left, nothing but the listings and that cache is read; without it, one more request per table reads its footer.
Goals for 100,000 shards with the cache: 220 requests, 60 seconds, 500 MB.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tyro

from benchmarks import _listed_outputs
from benchmarks._common import show, write_json
from benchmarks._fresh_process import run_fresh
from benchmarks._listed_outputs import BUCKET, IDENTITY
from benchmarks._listing_server import serve_listing
from patchsieve.pipeline.shards.specs import shard_id

MB = 1e6
PARTS = ("finding", "deciding")
GOALS = {"requests": 220, "seconds": 60.0, "peak": 500 * MB}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Benchmark of deciding what is done, on this machine."""

    shards: int = 100_000
    """Shards of the corpus, all of them done."""
    out: Path = Path("bench-out/done.json")
    """Results as JSON."""


def keys_of(count: int) -> tuple[str, ...]:
    """What the store lists, sorted: the shards, then their tables."""
    corpus = [f"corpus/photos-{number:0{len(str(count - 1))}d}.tar" for number in range(count)]
    return *corpus, *(f"out/scores/{shard_id(f'{BUCKET}/{key}')}.parquet" for key in corpus)


def cache_of(keys: tuple[str, ...], folder: Path) -> bytes:
    """The cache that a run leaves which has read the footers of all tables."""
    count = len(keys) // 2
    shards = dict(zip(keys[count:], keys[:count], strict=True))
    return _listed_outputs.cache_of(shards, {key: place for place, key in enumerate(keys)}, folder)


def measure(count: int, objects: Mapping[str, bytes], keys: tuple[str, ...]) -> dict[str, Any]:
    """What a fresh process takes, and how many requests it made."""
    with serve_listing(keys, objects) as server:
        arguments = {"specs": [f"{BUCKET}/corpus"], "out": f"{BUCKET}/out", "identity": IDENTITY}
        result: dict[str, Any] = run_fresh("decide", arguments, server.environment)
    assert result["states"] == {"done": count}, result["states"]
    return {
        **result,
        "requests": server.requests,
        "seconds": sum(result[f"{part}_seconds"] for part in PARTS),
    }


def main(options: Options) -> None:
    """Measure, print a table, write the JSON."""
    keys = keys_of(options.shards)
    with tempfile.TemporaryDirectory() as folder:
        cache = cache_of(keys, Path(folder))
    result = measure(options.shards, {"out/cache/scores.parquet": cache}, keys)
    show(
        f"{options.shards:,} shards decided done, with a cache of {len(cache) / MB:.1f} MB",
        ["", "measured", "goal"],
        [
            ["requests", f"{result['requests']:,}", f"{GOALS['requests']:,}"],
            [
                "seconds (finding + deciding)",
                f"{result['finding_seconds']:.1f} + {result['deciding_seconds']:.1f}",
                f"{GOALS['seconds']:.0f}",
            ],
            ["MB at the peak", f"{result['peak'] / MB:.0f}", f"{GOALS['peak'] / MB:.0f}"],
        ],
    )
    write_json({"shards": options.shards, "cached": result}, options.out)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
