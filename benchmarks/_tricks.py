"""A scorer with one of its savings undone, to see what each of them is worth."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, cast
from unittest import mock

import torch

from patchsieve.pipeline.compute import layers
from patchsieve.pipeline.compute.device import keep_freed_memory
from patchsieve.pipeline.row_config import Precision
from patchsieve.pipeline.scoring.removals import TokenRemovals
from patchsieve.pipeline.scoring.scorer import Scorer

Make = Callable[[], Scorer]


def share_nothing(make: Make) -> Scorer:
    """Without the shared first block."""
    scorer: Any = make()
    scorer._removals = TokenRemovals(scorer._model, scorer.visible)
    return cast(Scorer, scorer)


def compute_unread(make: Make) -> Scorer:
    """The last block computes all tokens, also those that nothing reads."""
    scorer: Any = make()
    last = scorer._model.decoder_blocks[-1]
    whole = last.forward
    last.forward = lambda x, read=None: whole(x)[:, :read]
    return cast(Scorer, scorer)


def separate_gelu(make: Make) -> Scorer:
    """GELU as an operation of its own."""
    with mock.patch.object(layers, "_fuse_gelu", return_value=None):
        return make()


def pack_every_time(make: Make) -> Scorer:
    """Weights in their usual order."""
    with mock.patch.object(layers, "pack", lambda weight: weight):
        return make()


def plain_linear(make: Make) -> Scorer:
    """Linear layers by PyTorch's choice of library, GELU apart."""
    with mock.patch.object(layers, "has_onednn", return_value=False):
        return make()


def giving_back(call: Callable[..., Any]) -> Callable[..., Any]:
    """The call with freed memory returned to the system, as glibc's own rule ends up: blocks from 32 MB at once."""

    def run(*arguments: Any, **named: Any) -> Any:
        mallopt: Any = getattr(ctypes.CDLL(None), "mallopt", lambda parameter, value: None)
        for parameter, value in ((-4, 65536), (-3, 2**25), (-1, 2**26)):
            mallopt(parameter, value)
        try:
            return call(*arguments, **named)
        finally:
            keep_freed_memory()

    return run


def give_memory_back(make: Make) -> Scorer:
    """Without freed memory kept."""
    scorer: Any = make()
    scorer.launch = giving_back(scorer.launch)
    return cast(Scorer, scorer)


UNDO: dict[str, Callable[[Make], Scorer]] = {
    "first block shared": share_nothing,
    "unread tokens left out": compute_unread,
    "GELU in the linear layer": separate_gelu,
    "weights packed": pack_every_time,
    "oneDNN for linear layers": plain_linear,
    "freed memory kept": give_memory_back,
}


def is_there(saving: str, precision: Precision, device: torch.device) -> bool:
    """Whether a scorer has a saving that could be undone: oneDNN and the shared block are for processors."""
    if saving == "GELU in the linear layer":
        # By oneDNN in float32, by cuBLAS in half precision.
        return (precision == "fp32") == (device.type == "cpu")
    return device.type == "cpu" or saving == "unread tokens left out"
