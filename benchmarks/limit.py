"""What this machine can do at most: matrix products per type, and memory bandwidth.

Every other speed is told as a share of these. A rate is the best of a few shapes and libraries, each run until it is
steady: what the hardware gave at least once, not an average. Attainable, in other words, not the data sheet's.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks._common import show, write_json
from patchsieve.pipeline.compute.device import synchronise, this_device
from patchsieve.pipeline.compute.layers import OneDnnLinear, has_half, has_onednn

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SHAPES = {"cpu": ((4096, 1024, 1024), (3724, 512, 2048)), "cuda": ((8192, 8192, 8192), (16384, 4096, 4096))}
"""Rows, inputs, outputs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Benchmark of the machine itself."""

    threads: int | None = None
    """Threads of PyTorch; its own choice by default."""
    seconds: float = 1.0
    """For each shape and library."""
    out: Path = Path("bench-out/limit.json")
    """Results as JSON."""


def best_seconds(run: Callable[[], object], where: torch.device, budget: float) -> float:
    """The fastest of the runs that fit into so many seconds, three at least."""
    run()
    synchronise(where)
    best, spent, runs = float("inf"), 0.0, 0
    while spent < budget or runs < 3:
        started = time.perf_counter()
        run()
        synchronise(where)
        seconds = time.perf_counter() - started
        best, spent, runs = min(best, seconds), spent + seconds, runs + 1
    return best


@torch.inference_mode()
def matrix_rate(precision: str, where: torch.device, seconds: float = 1.0) -> float:
    """10^9 operations per second of matrix products, two per multiply-add."""
    best = 0.0
    for rows, inputs, outputs in SHAPES[where.type]:
        x = torch.randn(rows, inputs).to(where, DTYPES[precision])
        linear = torch.nn.Linear(inputs, outputs, bias=False).to(where, DTYPES[precision])
        ways: list[Callable[[Tensor], Tensor]] = [linear]
        if has_onednn(where) and (precision == "fp32" or has_half(where)):
            ways.append(OneDnnLinear(linear))
        for way in ways:
            taken = best_seconds(lambda way=way, x=x: way(x), where, seconds)  # type: ignore[misc]
            best = max(best, 2e-9 * rows * inputs * outputs / taken)
    return best


@torch.inference_mode()
def bandwidth(where: torch.device, seconds: float = 1.0) -> float:
    """10^9 bytes per second of a copy of 512 MB, read and written bytes together."""
    source = torch.zeros(2**27, dtype=torch.float32, device=where)
    target = torch.empty_like(source)
    return 2e-9 * source.nbytes / best_seconds(lambda: target.copy_(source), where, seconds)


def precisions(where: torch.device) -> list[str]:
    """Types worth asking for: processors have no fast fp16 in PyTorch, those from before AVX-512 no bf16 either."""
    if where.type == "cpu":
        return ["fp32", "bf16"] if has_half(where) else ["fp32"]
    return ["fp32", "bf16", "fp16"]


def main(options: Options) -> None:
    """Measure, print, write the JSON."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    where = this_device()
    rates = {name: matrix_rate(name, where, options.seconds) for name in precisions(where)}
    memory = bandwidth(where, options.seconds)
    rows = [[f"matrix products, {name}", f"{rate:,.0f} GFLOP/s"] for name, rate in rates.items()]
    show(f"limits of {where}", ["", "best"], [*rows, ["copy", f"{memory:,.1f} GB/s"]])
    results = {"device": str(where), "gflop_per_second": rates, "gigabytes_per_second": memory}
    write_json({"limit": results}, options.out)


if __name__ == "__main__":
    import tyro  # not where `gpu_check` runs this

    main(tyro.cli(Options, description=__doc__))
