"""Which precision a model runs in on a device: what is possible, and the fastest that is safe."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import get_args

import torch
from torch import Tensor

from patchsieve.pipeline.compute.device import synchronise
from patchsieve.pipeline.compute.layers import has_half
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.row_config import Precision

HALF_GAIN = 1.1
"""Half precision is taken only where it is this many times faster: it costs some order of the ranks."""

_PROBE_ROUNDS = 3


def check_precision(precision: Precision, device: torch.device) -> None:
    """UserError for a precision that the device cannot do."""
    if precision not in get_args(Precision):
        raise UserError(f"precision {precision!r} is none of {', '.join(get_args(Precision))}")
    if precision == "fp16" and device.type == "cpu":
        raise UserError("precision fp16 needs a GPU; processors have bf16 and fp32")


@contextmanager
def float32_products(precision: Precision) -> Iterator[None]:
    """How a GPU computes float32 matrix products inside: as they are in fp32, else in TF32, whose digits are fp16's.

    A setting of the whole process in PyTorch.
    """
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "ieee" if precision == "fp32" else "tf32"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def fastest_precision(
    make_probe: Callable[[Precision], Callable[[], Tensor]], device: torch.device
) -> Precision:
    """The precision whose probe is the fastest.

    Nothing is assumed: some processors run bf16 several times faster than fp32, some slower, some not at all. fp16 is
    tried on GPUs only. A precision whose results are not all finite is out, and fp32 stays where the gain is under
    10 %.
    """
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        halves: tuple[Precision, ...] = ("bf16", "fp16") if native else ("fp16",)
    else:
        halves = ("bf16",) if has_half(device) else ()
    precisions: tuple[Precision, ...] = ("fp32", *halves)
    probes = {name: make_probe(name) for name in precisions}
    usable = [name for name, probe in probes.items() if bool(probe().isfinite().all())]
    seconds = dict.fromkeys(usable, float("inf"))
    for _ in range(_PROBE_ROUNDS):
        # In turns, and the best of each: other work on the machine then hits all alike.
        for name in usable:
            started = time.perf_counter()
            probes[name]()
            synchronise(device)
            seconds[name] = min(seconds[name], time.perf_counter() - started)
    return pick_precision(seconds)


def pick_precision(seconds: dict[Precision, float]) -> Precision:
    """The choice, given what each usable precision took.

    fp16 comes before bf16 unless that is clearly faster: its errors are an eighth, and ranks hang on small
    differences.
    """
    best: Precision = "fp32"
    for name in ("fp16", "bf16"):
        if name in seconds and seconds[name] * HALF_GAIN < seconds[best]:
            best = name
    return best
