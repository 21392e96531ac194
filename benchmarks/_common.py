"""What benchmarks share: the machine in words, alternating measurements, and results as a table and as JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from patchsieve.ranker.learning.agreement import Interval


def machine() -> dict[str, Any]:
    """What a figure depends on: processor, cores, load by other work, GPU, threads and versions."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    flags: set[str] = set()
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                model = value.strip()
            if name.strip() == "flags":
                flags = set(value.split())
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "vector": sorted(flags & {"avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile"}),
        "load": round(os.getloadavg()[0], 2),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def measure(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each run in each round. The runs take turns, so that other work on the machine hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(seconds: Mapping[str, Sequence[float]], of: str, to: str) -> float:
    """How many times faster `of` is than `to`: the median over the rounds of the ratio within a round."""
    return statistics.median(b / a for a, b in zip(seconds[of], seconds[to], strict=True))


def span(interval: Interval | None) -> str:
    """An interval in a cell of a table, "" for none."""
    return "" if interval is None else f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table."""
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def write_json(results: Mapping[str, Any], scratch: Path) -> None:
    """Write results with the machine beside them; makes the folder."""
    scratch.parent.mkdir(parents=True, exist_ok=True)
    scratch.write_text(json.dumps({"machine": machine(), **results}, indent=2) + "\n")
    print(f"written: {scratch}")
