"""What `torch.cuda` says and does beside its tensors: events, streams, graphs, generators, properties."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from tests.helpers.pretended_gpu.device import Device
from tests.helpers.pretended_gpu.kernels import compute
from tests.helpers.pretended_gpu.nested import tensors_in
from tests.helpers.pretended_gpu.tensor import CUDA


@dataclasses.dataclass(frozen=True)
class Properties:
    """What `torch.cuda.get_device_properties` tells."""

    name: str
    major: int
    minor: int
    total_memory: int
    multi_processor_count: int = 132


class Stream:
    """The one stream there is: work is done in the order in which it is asked for."""

    def wait_stream(self, _other: Stream) -> None:
        """Nothing is under way elsewhere."""

    def wait_event(self, _event: Any) -> None:
        """Nothing is under way elsewhere."""

    def synchronize(self) -> None:
        """Wait for all that was asked."""
        torch.cuda.synchronize()


class Generator(torch.Generator):
    """One of the processor that says what device it was asked for."""

    asked: torch.device

    def __new__(cls, device: Any = "cpu") -> Generator:
        found = super().__new__(cls)
        found.asked = torch.device(device)
        return found

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA if self.asked.type == CUDA.type else self.asked


def event_type(gpu: Device) -> type:
    """`torch.cuda.Event` of a device."""

    class Event:
        def __init__(self, *, enable_timing: bool = False) -> None:
            self._timing = enable_timing
            self._at, self._moment = 0.0, -1

        def record(self, _stream: Any = None) -> None:
            self._at, self._moment = time.perf_counter(), gpu.transfers.now()

        def synchronize(self) -> None:
            assert self._moment >= 0, "an event that was never recorded"
            gpu.wait("event", self._moment)

        def query(self) -> bool:
            return True

        def elapsed_time(self, later: Event) -> float:
            assert self._timing, "an event without timing"
            assert later._timing, "an event without timing"
            return 1000 * (later._at - self._at)

    return Event


def graph_type(gpu: Device) -> type:
    """`torch.cuda.CUDAGraph` of a device: what is launched again are operations, on the same tensors.

    It holds the memory that the recorded operations had at their peak.
    """

    class Graph:
        def capture_begin(self, *_pool: Any, **_modes: Any) -> None:
            assert gpu.capture is None, "two recordings at a time"
            self._before = gpu.memory.live
            gpu.memory.start_peak()
            gpu.capture = []

        def capture_end(self) -> None:
            assert gpu.capture is not None
            self._recorded, gpu.capture = gpu.capture, None
            gpu.memory.reserve(self, gpu.memory.peak - self._before)

        def replay(self) -> None:
            gpu.ledger.note("kernel", "graph")
            with torch.inference_mode(False), torch.no_grad():
                for func, name, args, kwargs, outputs in self._recorded:
                    made = tensors_in(compute(func, name, args, kwargs))
                    for kept, again in zip(outputs, made, strict=True):
                        if kept is not again:
                            kept.copy_(again)

    return Graph


@contextlib.contextmanager
def on_stream(_stream: Stream | None) -> Iterator[None]:
    """`torch.cuda.stream`."""
    yield


def replacements(gpu: Device, properties: Properties) -> dict[str, Any]:
    """What stands in for attributes of `torch.cuda`."""
    free: Callable[[], int] = lambda: (gpu.memory.limit or properties.total_memory) - gpu.memory.live  # noqa: E731
    only = Stream()
    return {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_lazy_init": lambda: None,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda *_: properties.name,
        "get_device_capability": lambda *_: (properties.major, properties.minor),
        "get_device_properties": lambda *_: properties,
        "is_bf16_supported": lambda *_, including_emulation=True: (
            including_emulation or properties.major >= 8
        ),
        "synchronize": lambda *_: gpu.wait("synchronize"),
        "empty_cache": lambda: _empty_cache(gpu),
        "Stream": lambda *_, **__: only,
        "stream": on_stream,
        "current_stream": lambda *_: only,
        "max_memory_reserved": lambda *_: gpu.memory.peak,
        "max_memory_allocated": lambda *_: gpu.memory.peak,
        "memory_allocated": lambda *_: gpu.memory.live,
        "mem_get_info": lambda *_: (free(), gpu.memory.limit or properties.total_memory),
        "Event": event_type(gpu),
        "CUDAGraph": graph_type(gpu),
        "default_generators": (torch.Generator(),),
    }


def _empty_cache(gpu: Device) -> None:
    gpu.memory.emptied += 1
