"""A function on a GPU that is compiled once and then launched as one thing: a CUDA graph.

A batch of the teacher is some hundred kernels, and launching each takes Python's lock. Beside sixteen decoding threads
that took longer than the kernels themselves: on an H100 half of the speed was lost. A graph is one launch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_WARM_UPS = 2
_COMPILATIONS = 1000
"""PyTorch gives up compiling a function for new shapes after 8, for all its users in a process together."""

Function = Callable[..., Tensor]


def compiled(function: Function, *constants: Callable[..., object]) -> Function:
    """The function with its elementwise work fused, for fixed shapes; raises where it cannot be compiled whole.

    `constants`: functions that it calls, whose results do not change.
    """
    for constant in constants:
        # Here and not where they are defined: every process would load the compiler, for seconds.
        torch.compiler.assume_constant_result(constant)  # type: ignore[no-untyped-call]
    fast = torch.compile(function, dynamic=False, fullgraph=True)

    def run(*values: Tensor) -> Tensor:
        limits = {"recompile_limit": _COMPILATIONS, "accumulated_recompile_limit": _COMPILATIONS}
        with torch._dynamo.config.patch(limits):
            result: Tensor = fast(*values)
        return result

    return run


class Recorded:
    """Calls a function of tensors of fixed shapes on a GPU as one launch."""

    def __init__(self, function: Function, values: Sequence[Tensor], device: torch.device) -> None:
        """`values`: arguments of the shapes and types that all calls have, on any device; the function is run on them.

        Raises what the function raises, torch.OutOfMemoryError where its results do not fit beside all else.
        """
        self._function = function  # holds constants that the graph reads
        self._values = [value.to(device) for value in values]
        aside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(aside):
            # Compiles, loads kernels and chooses algorithms, none of which can be recorded.
            for _ in range(_WARM_UPS):
                function(*self._values)
        torch.cuda.current_stream(device).wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads of this process may allocate pinned memory meanwhile.
        with torch.cuda.graph(self._graph, stream=aside, capture_error_mode="thread_local"):
            self._result = function(*self._values)

    def __call__(self, *values: Tensor) -> Tensor:
        """The function's result for `values`, in pinned or device memory; the next call overwrites it."""
        for place, value in zip(self._values, values, strict=True):
            place.copy_(value, non_blocking=True)
        self._graph.replay()
        return self._result
