"""A ranker made ready to rank whole images fast on one device, and the precision and batch that are fastest there."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import torch
from torch import Tensor

from patchsieve.pipeline.compute.batch_size import PROBE_RUNS, choose_batch_size
from patchsieve.pipeline.compute.device import synchronise
from patchsieve.pipeline.compute.layers import narrow, use_onednn
from patchsieve.pipeline.compute.precision import check_precision, fastest_precision
from patchsieve.pipeline.row_config import Precision
from patchsieve.ranker.model.ranker import Ranker

_LARGEST_BATCH = {"cpu": 32, "cuda": 256}
_PROBE_S = 1.0


def prepare_ranker(ranker: Ranker, precision: Precision, device: torch.device) -> Ranker:
    """A frozen copy on the device whose blocks compute in that precision; norms, residual sums and head in float32.

    Raises UserError for a precision that the device cannot do.
    """
    check_precision(precision, device)
    ready = copy.deepcopy(ranker).to(device).eval().requires_grad_(False)
    if precision != "fp32":
        for block in ready.backbone.blocks:
            narrow(block, precision, device)
    use_onednn(ready.backbone.blocks, precision, device)
    return ready


def choose_ranker_precision(ranker: Ranker, device: torch.device) -> Precision:
    """The fastest precision that is safe, by a short probe of this ranker on this device."""
    count = 64 if device.type == "cuda" else 4
    return fastest_precision(
        lambda precision: _probe(prepare_ranker(ranker, precision, device), count), device
    )


def choose_ranker_batch(ready: Ranker) -> int:
    """How many images at once are the fastest, by a probe of a second; `ready`: from `prepare_ranker`."""
    device = ready.position_embedding.device

    def seconds_per_image(count: int) -> float:
        run, best = _probe(ready, count), float("inf")
        for _ in range(PROBE_RUNS):
            started = time.perf_counter()
            run()
            synchronise(device)
            best = min(best, time.perf_counter() - started)
        return best / count

    return choose_batch_size(seconds_per_image, largest=_LARGEST_BATCH[device.type], budget=_PROBE_S)


def _probe(ready: Ranker, count: int) -> Callable[[], Tensor]:
    config = ready.config
    shape = (count, config.positions, config.patch_values)
    noise = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = noise.to(ready.position_embedding.device)

    @torch.inference_mode()
    def run() -> Tensor:
        return ready.forward_image(images)

    return run
