"""Operations that a run really executes, counted at each matrix product and attention, as against the nominal ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


def _linear(x: Sequence[int], _weight: Any, *_others: Any, out_shape: Sequence[int], **_named: Any) -> int:
    return 2 * math.prod(x) * out_shape[-1]


def _attention(
    queries: Sequence[int], keys: Sequence[int], values: Sequence[int], *_others: Any, **_named: Any
) -> int:
    return int(sdpa_flop_count(queries, keys, values))


# PyTorch's counter does not know the operators for processors.
PROCESSOR_OPERATORS: dict[Any, Any] = {
    torch.ops.mkldnn._linear_pointwise: _linear,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
}


def executed_gflop(score: Callable[[Tensor, Tensor], object], pixels: Tensor, places: Tensor) -> float:
    """10^9 operations per view of one call, two per multiply-add; views uint8 `[N, L, P]`, positions `[N, V]`."""
    with FlopCounterMode(display=False, custom_mapping=PROCESSOR_OPERATORS) as counter:
        score(pixels, places)
    return float(counter.get_total_flops()) / 1e9 / len(pixels)
