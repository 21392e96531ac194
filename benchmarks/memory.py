"""Peak memory of an actor's process for short and long shards and for few and many of them, and of finding shards.

Every figure comes from a process of its own that scores without Ray, with a teacher that costs next to nothing, the
default mask ratio and stored pixels. Goals: memory depends neither on the length of a shard, but for one row group of
its table (64 MB and what compressing it takes), nor on their number; 100,000 shards are found in seconds with less
than 500 MB.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from pathlib import Path
from typing import Any

import tyro

from benchmarks._common import show, write_json
from benchmarks._fresh_process import run_fresh
from benchmarks._listing_server import serve_listing
from benchmarks._photos import pack_shard, synthetic_photo
from benchmarks._teachers import save_random_teacher

MB = 1e6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Benchmark of memory on this machine."""

    samples: tuple[int, ...] = (200, 5_000, 10_000)
    """Samples of one shard, a process each."""
    shards: tuple[int, ...] = (5, 50)
    """Shards one after the other, a process each."""
    samples_per_shard: int = 50
    """Samples of each of these."""
    urls: int = 100_000
    """Shards to find."""
    batch_size: int = 8
    """Views scored at once."""
    threads: int = os.cpu_count() or 1
    """Threads of the teacher, and decoders."""
    out: Path = Path("bench-out/memory.json")
    """Results as JSON."""


def scored(shards: list[str], folder: Path, teacher: str, options: Options) -> dict[str, Any]:
    """What a fresh process says that scored these."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        result: dict[str, Any] = run_fresh(
            "score_shards",
            {
                "shards": shards,
                "out": out,
                "teacher": teacher,
                "batch_size": options.batch_size,
                "threads": options.threads,
            },
        )
    return result


def scoring_row(title: str, result: dict[str, Any]) -> list[str]:
    """A line of the table about scoring."""
    before, peaks = result["before"], result["peaks"]
    return [
        title,
        *(f"{value / MB:.0f}" for value in (before, peaks[0], peaks[-1], peaks[-1] - before)),
        f"{result['seconds']:.0f}",
    ]


def measure_scoring(folder: Path, options: Options) -> dict[str, Any]:
    """Peaks by length and by number of shards."""
    files = [synthetic_photo(seed, 48, 64) for seed in range(50)]
    teacher, _ = save_random_teacher("toy", folder)
    results, rows = {}, []
    for count in options.samples:
        shard = pack_shard(folder / f"long-{count}.tar", files, count)
        title = f"1 shard of {count:,} samples"
        results[title] = scored([shard], folder, teacher, options)
        rows.append(scoring_row(title, results[title]))
    for count in options.shards:
        many = [
            pack_shard(folder / f"many-{number:03d}.tar", files, options.samples_per_shard)
            for number in range(count)
        ]
        title = f"{count} shards of {options.samples_per_shard} samples"
        results[title] = scored(many, folder, teacher, options)
        rows.append(scoring_row(title, results[title]))
    show(
        "Peak memory of scoring, MB",
        ["", "before", "first shard", "last shard", "growth", "seconds"],
        rows,
    )
    return results


def measure_finding(folder: Path, options: Options) -> dict[str, Any]:
    """Seconds and peaks of finding shards, of local files and on an object store."""
    digits = len(str(options.urls - 1))
    names = tuple(f"photos-{number:0{digits}d}.tar" for number in range(options.urls))
    files = folder / "found"
    files.mkdir()
    for name in names:
        (files / name).touch()
    pattern = f"photos-{{{0:0{digits}d}..{options.urls - 1}}}.tar"
    results = {
        "local files, brace range": run_fresh("expand", {"specs": [f"{files}/{pattern}"]}),
        "local files, folder": run_fresh("expand", {"specs": [str(files)]}),
    }
    with serve_listing(tuple(f"corpus/{name}" for name in names)) as server:
        for title, spec in (("brace range", pattern), ("folder", "")):
            results[f"s3 (local server), {title}"] = run_fresh(
                "expand", {"specs": [f"s3://bucket/corpus/{spec}"]}, server.environment
            )
    assert all(result["shards"] == options.urls for result in results.values())
    show(
        f"Finding {options.urls:,} shards",
        ["", "seconds", "MB before", "MB at the peak"],
        [
            [title, *(f"{x:.1f}" for x in (found["seconds"], found["before"] / MB, found["peak"] / MB))]
            for title, found in results.items()
        ],
    )
    return results


def main(options: Options) -> None:
    """Measure, print tables, write the JSON."""
    with tempfile.TemporaryDirectory() as folder:
        finding = measure_finding(Path(folder), options)
        scoring = measure_scoring(Path(folder), options)
    write_json({"finding": finding, "scoring": scoring}, options.out)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
